"""The columns of data for tagging, questions on a context, generation and language modelling."""

from __future__ import annotations

from collections.abc import Sequence

from deltatune.core.errors import DeltatuneError, nearest
from deltatune.data.columns import column_names as naming
from deltatune.data.columns.infer_task import candidates, clashing
from deltatune.data.columns.label_columns import Columns, column_examples, is_id, looks_like_text, names_of
from deltatune.data.formats.files import Row
from deltatune.data.layouts.conversations import MESSAGES, is_chat
from deltatune.data.layouts.generation_rows import OUTPUT, REFERENCES
from deltatune.data.layouts.layout import with_parsed
from deltatune.data.task_types import Task

NAMES: dict[Task, tuple[tuple[tuple[str, ...], ...], tuple[str, ...]]] = {
    "tag": ((naming.TOKENS,), naming.TAGS),
    "span": ((naming.QUESTIONS, naming.CONTEXTS), naming.ANSWERS),
    "generate": ((naming.INPUTS,), (*naming.OUTPUTS, *naming.REFERENCES)),
    "lm": ((naming.TEXTS,), ()),
}
"""Names of each text column and of the label column."""

WIDTHS: dict[Task, tuple[int, int]] = {"tag": (1, 1), "span": (2, 2), "generate": (1, 8), "lm": (1, 1)}
"""How many text columns a task has, at least and at most."""


def columns_for(task: Task, rows: Sequence[Row], text: Sequence[str], label: str | None, header: bool) -> Columns:
    """The text columns and the label column for a task, as told or by well-known names.

    Raises DeltatuneError listing what is wrong, the columns there are with an example each, and the option to give.
    """
    names = names_of(rows)
    if tuple(text) == (MESSAGES,) and MESSAGES not in names:  # what an adapter remembers of another file's chats
        text, label = (), None
    if task == "generate" and label == OUTPUT and OUTPUT not in names and REFERENCES in names:
        label = REFERENCES
    problems = _told_problems(task, names, text, label)
    merged = {name.strip().lower(): name for name in reversed(names)}
    sure = candidates(task, rows, text, label)
    if sure and not clashing(sure):
        chosen, answer = sure[0]
    else:
        answer = "" if task == "lm" else label or _label(task, merged, text)
        chosen = tuple(text) or _texts(task, rows, merged, answer)
    if task == "generate" and not answer and len(chosen) == 1 and _is_chat(rows, chosen[0]):
        answer = chosen[0]
    if not problems:
        problems = _unclear(task, chosen, answer)
    if problems:
        hint = (
            " If the first line of the file is data already, put a line with column names above it." if header else ""
        )
        raise DeltatuneError("\n".join([*problems, f"The columns are: {column_examples(rows, names)}.{hint}"]))
    what = " + ".join(map(repr, chosen)) + (f" with {answer!r}" if answer and answer not in chosen else "")
    guessed = bool(chosen and not text) or bool(answer and label is None)
    note = f"the columns for {task} are {what}, a guess from the columns {', '.join(names)}"
    return Columns(chosen, answer, (note,) if guessed else ())


def _is_chat(rows: Sequence[Row], column: str) -> bool:
    return any(is_chat(row["chat"]) for row in with_parsed([{"chat": row.get(column)} for row in rows[:100]], ["chat"]))


def _label(task: Task, merged: dict[str, str], text: Sequence[str]) -> str:
    """The only column with a well-known name, else ""; "tags" and "references" give way to nothing and to outputs."""
    found = [merged[name] for name in NAMES[task][1] if name in merged and merged[name] not in text]
    outputs = [name for name in found if name.strip().lower() not in naming.REFERENCES]
    found = outputs or found
    return found[0] if len(found) == 1 or (found and found[0].strip().lower() == "tags") else ""


def _texts(task: Task, rows: Sequence[Row], merged: dict[str, str], label: str) -> tuple[str, ...]:
    """The columns with well-known names, else the only column of texts, else ()."""
    found = []
    for known in NAMES[task][0]:
        present = [merged[name] for name in known if name in merged and merged[name] != label]
        if task == "generate" and len(present) > 1:
            return ()  # which of them, or all?
        found += present[:1]
    if len(found) == len(NAMES[task][0]):
        return tuple(found)
    likely = [n for n in merged.values() if n != label and not is_id(n) and looks_like_text([r.get(n) for r in rows])]
    return (likely[0],) if len(likely) == 1 and WIDTHS[task][0] == 1 and task != "tag" else ()


def _told_problems(task: Task, names: list[str], text: Sequence[str], label: str | None) -> list[str]:
    """What is wrong with the columns that the user named."""
    wanted = [("--text", name) for name in text] + ([("--label", label)] if label else [])
    problems = [
        f"{flag} {name}: there is no column {name!r}{nearest(name, names) or '.'}"
        for flag, name in wanted
        if name not in names
    ]
    least, most = WIDTHS[task]
    if text and not least <= len(text) <= most:
        needed = (
            "one text column" if most == 1 else "the question's and the context's column" if least == 2 else "texts"
        )
        problems.append(f"--task {task} needs {needed}; given were {', '.join(text)}.")
    if len(set(text)) < len(text):
        problems.append(f"--text names a column twice: {', '.join(text)}.")
    if label and label in text and not (task == "generate" and len(text) == 1):
        problems.append(f"column {label!r} cannot be both text and label.")
    if label and task == "lm":
        problems.append(f"--task lm learns the text itself: leave out --label {label}.")
    return problems


def _unclear(task: Task, text: tuple[str, ...], label: str) -> list[str]:
    """What is still to be named."""
    things = {
        "tag": ("the tokens", "--text NAME", "the tags"),
        "span": ("the question and the context", "--text QUESTION --text CONTEXT", "the answers"),
        "generate": ("the input", "--text NAME, more than once for several", "the text to be written"),
        "lm": ("the text", "--text NAME", ""),
    }
    inputs, flag, outputs = things[task]
    problems = [] if text else [f"which column holds {inputs} is not clear: name it with {flag}."]
    if not label and task != "lm":
        problems.append(f"which column holds {outputs} is not clear: name it with --label NAME.")
    return problems


def renamed(columns: Columns, task: Task) -> Columns:
    """The columns after the rows were read: a chat is in messages, the first of several references in output."""
    if task == "generate" and columns.text == (columns.label,):
        return Columns((MESSAGES,), MESSAGES, columns.notes)
    if task == "generate" and columns.label == REFERENCES:
        return Columns(columns.text, OUTPUT, columns.notes)
    return columns
