"""The text columns and the label column for a task: as named by the user, else inferred where there is no doubt.

First come the columns whose names together mean the task (`candidates`), then well-known names of the label and of the
texts alone, then what the values look like. `RULES` has what differs between tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deltatune.core.errors import DeltatuneError, nearest
from deltatune.data.columns.column_names import MESSAGES, OUTPUT, REFERENCES, by_normalised, normalised
from deltatune.data.columns.column_rules import RULES, Candidate, holds_chats
from deltatune.data.columns.column_values import column_examples
from deltatune.data.dataset import Row, TaskName, columns_of
from deltatune.data.formats.file_format import first_few

UNAMBIGUOUS = {"tags", OUTPUT, MESSAGES}
"""Labels that are chosen even where there are others beside them."""


@dataclass(frozen=True)
class Columns:
    """The text columns, the label column ("" for none), and a note on each that was inferred."""

    text: tuple[str, ...]
    label: str
    notes: tuple[str, ...] = ()


def choose_columns(
    task: TaskName, rows: Sequence[Row], text: Sequence[str] = (), label: str | None = None, header: bool = False
) -> Columns:
    """The text columns and the label column of `rows` for a task; `text` and `label` are those that the user named.

    `header` tells that the names are the first line of a file. Raises DeltatuneError listing what is wrong, the columns
    with an example each, and the option to give.
    """
    rules, names = RULES[task], columns_of(rows)
    if tuple(text) == (MESSAGES,) and MESSAGES not in names:  # the columns of an adapter, trained on another file
        text, label = (), None
    if task == "generate" and label == OUTPUT and OUTPUT not in names and REFERENCES in names:
        label = REFERENCES
    problems = _named_problems(task, names, text, label)
    likely = candidates(task, rows, text, label)
    if likely and not ambiguous(likely):
        chosen_text, chosen_label = likely[0]
    else:
        free = by_normalised([name for name in names if name not in text])
        chosen_label = (label or rules.find_label(rows, free)) if rules.label else ""
        others = by_normalised([name for name in names if name != chosen_label])
        chosen_text = tuple(text) or rules.find_texts(rows, others)
    if task == "generate" and not chosen_label and len(chosen_text) == 1 and holds_chats(rows, chosen_text[0]):
        chosen_label = chosen_text[0]
    if not chosen_text:
        problems.append(f"which column holds {rules.texts} is not clear: name it with {rules.text_option}.")
    if rules.label and not chosen_label:
        problems.append(f"which column holds {rules.label} is not clear: name it with --label NAME.")
    for column, option in [
        *((name, "--text") for name in chosen_text if name not in text),
        *((name, "--label") for name in [chosen_label] if name and name != label and name not in chosen_text),
    ]:
        twins = [name for name in names if normalised(name) == normalised(column)]
        if len(twins) > 1:
            listed = " and ".join(map(repr, twins))
            problems.append(f"the columns {listed} differ only in case or blanks: name one with {option} NAME.")
    if problems:
        hint = (
            " If the first line of the file is data already, put a line with column names above it." if header else ""
        )
        raise DeltatuneError("\n".join([*problems, f"The columns are: {column_examples(rows, names)}.{hint}"]))
    inferred = []
    if not text:
        are = "column is" if len(chosen_text) == 1 else "columns are"
        inferred.append(f"the text {are} {' + '.join(map(repr, chosen_text))}")
    if label is None and chosen_label and chosen_label not in chosen_text:
        inferred.append(f"the label column is {chosen_label!r}")
    listed = first_few([name[:60] for name in names], 20)
    notes = tuple(f"{choice}, inferred from the columns {listed}" for choice in inferred)
    return Columns(chosen_text, chosen_label, notes)


def _named_problems(task: TaskName, names: list[str], text: Sequence[str], label: str | None) -> list[str]:
    """What is wrong with the columns that the user named."""
    rules = RULES[task]
    named = [("--text", name) for name in text] + ([("--label", label)] if label else [])
    problems = [
        f"{option} {name}: there is no column {name!r}{nearest(name, names) or '.'}"
        for option, name in named
        if name not in names
    ]
    if text and not rules.fewest <= len(text) <= rules.most:
        problems.append(f"the task {task} needs {rules.needed}; --text names {', '.join(text)}.")
    if len(set(text)) < len(text):
        problems.append(f"--text names a column twice: {', '.join(text)}.")
    if label and label in text and not (task == "generate" and len(text) == 1):
        problems.append(f"column {label!r} cannot be both text and label.")
    if label and not rules.label:
        problems.append(f"--task {task} learns the text itself: leave out --label {label}.")
    return problems


def candidates(task: TaskName, rows: Sequence[Row], text: Sequence[str], label: str | None) -> list[Candidate]:
    """The columns whose names mean this task, the likeliest first; only those that agree with what the user named."""
    likely = RULES[task].candidates(rows, by_normalised(columns_of(rows)))
    return list(
        dict.fromkeys(
            (texts, answer)
            for texts, answer in likely
            if (not text or tuple(text) == texts) and (label is None or label == answer)
        )
    )


def ambiguous(likely: Sequence[Candidate]) -> bool:
    """Whether the label could be one of several, and none has a name that is meant in any case."""
    return len({label for _, label in likely}) > 1 and normalised(likely[0][1]) not in UNAMBIGUOUS
