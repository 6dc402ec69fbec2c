"""Which task the columns are for, where there is no doubt; and what could be meant where there is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from deltatune.core.errors import DeltatuneError
from deltatune.data.columns import column_names as naming
from deltatune.data.columns.label_columns import (
    LABELS,
    choose,
    column_examples,
    guess_label,
    is_id,
    looks_like_text,
    names_of,
)
from deltatune.data.formats.files import Row
from deltatune.data.layouts.conversations import is_chat
from deltatune.data.layouts.layout import is_strings, with_parsed
from deltatune.data.task_types import Task

FEW_ANSWERS = 5  # rows an answer; where each occurs that often they are classes
ENOUGH = 20  # rows to judge that by

SURE = {"tags", "output", "messages"}
"""Labels that are meant where there are others beside them."""

Found = tuple[tuple[str, ...], str]
"""Text columns and label column."""


def guess_task(rows: Sequence[Row], text: Sequence[str], label: str | None) -> tuple[Task | None, str]:
    """The task and a sentence on why, or (None, "") where the columns are those of classification or regression.

    `text` and `label` are what the user named; a guess never contradicts them. Raises DeltatuneError where it is not
    clear, with the options to choose from.
    """
    for task in FINDERS:
        found = candidates(task, rows, text, label)
        if not found:
            continue
        if task == "generate" and _few_answers(rows, found[0]):
            label_named = found[0][1].strip().lower() in LABELS
            if label_named or all(isinstance(row.get(found[0][1]), bool) for row in rows):
                return None, ""
            raise DeltatuneError(_few_message(rows, found[0]))
        if clashing(found):
            listed = "".join(f"\n  --task {task} {_options(one)}" for one in found)
            raise DeltatuneError(f"the task is {task}, but which columns it is for is not clear. Say which:{listed}")
        return task, f"the task is {task}, a guess from the names of the columns"
    if text and label:
        told = tuple(text), label
        if len(text) == 1 and _parallel(rows, text[0], label, strings=False):
            return "tag", f"the task is tag, since {text[0]!r} and {label!r} hold lists of one length"
        _refuse_texts_as_labels(rows, told)
    return None, ""


def candidates(task: Task, rows: Sequence[Row], text: Sequence[str], label: str | None) -> list[Found]:
    """The columns that can be meant by their names, the likeliest first; only ones that agree with what was named."""
    merged = {name.strip().lower(): name for name in reversed(names_of(rows))}
    found = [one for one in FINDERS[task](rows, merged) if _agrees(one, text, label)]
    return list(dict.fromkeys(found))


def clashing(found: Sequence[Found]) -> bool:
    """Whether the label could be one of several, none of them called as it is here."""
    labels = {label for _, label in found}
    return len(labels) > 1 and found[0][1].strip().lower() not in SURE


def options(rows: Sequence[Row]) -> str:
    """What to add to an error on unclear columns: other tasks that these columns could be for."""
    names = [name for name in names_of(rows) if not is_id(name)]
    texts = [name for name in names if looks_like_text([row.get(name) for row in rows])]
    found = []
    if len(texts) > 1:
        pairs = [(text, label) for text in texts[:1] for label in texts[1:3]]
        found += [f"  --task generate --text {text} --label {label}" for text, label in pairs]
    found += [f"  --task lm --text {text}" for text in texts[:2]]
    return "\n".join(["Another task is possible with these columns:", *found]) if found else ""


def _agrees(found: Found, text: Sequence[str], label: str | None) -> bool:
    return (not text or tuple(text) == found[0]) and (label is None or label == found[1])


# --- one a task ---


def _tagged(rows: Sequence[Row], merged: dict[str, str]) -> Iterator[Found]:
    """A column of tokens and one of tags: lists, or strings with as many parts."""
    for tokens in (merged[name] for name in naming.TOKENS if name in merged):
        for name in naming.TAGS:
            if name in merged and _parallel(rows, tokens, merged[name]):
                yield (tokens,), merged[name]


def _parallel(rows: Sequence[Row], tokens: str, tags: str, strings: bool = True) -> bool:
    """Whether most rows have lists in both columns, or strings of more than one word with as many tags."""
    sample = with_parsed([{tokens: row.get(tokens), tags: row.get(tags)} for row in rows[:100]], [tokens, tags])
    pairs = [(row[tokens], row[tags]) for row in sample]
    lists = sum(isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) for one, other in pairs)
    words = [(a.split(), b.split()) for a, b in pairs if isinstance(a, str) and isinstance(b, str)]
    equal = sum(len(one) == len(other) for one, other in words)
    several = strings and any(len(one) > 1 for one, _ in words)
    return 2 * lists > len(pairs) or (several and 2 * equal > len(pairs))


def _asked(rows: Sequence[Row], merged: dict[str, str]) -> Iterator[Found]:
    """question, context and answers."""
    if all(name in merged for name in ("question", "context", "answers")):
        yield (merged["question"], merged["context"]), merged["answers"]


def _written(rows: Sequence[Row], merged: dict[str, str]) -> Iterator[Found]:
    """A chat, or a pair of columns whose names say that one is written from the other."""
    for name in naming.CHATS:
        if name in merged and _mostly(with_parsed([{"chat": row.get(merged[name])} for row in rows[:100]], ["chat"])):
            yield (merged[name],), merged[name]
    for inputs, output in naming.WRITING:
        if output in merged and all(name in merged for name in inputs):
            yield tuple(merged[name] for name in inputs), merged[output]
    if any(name in merged for _, name in naming.WRITING):
        return
    for several in (merged[name] for name in naming.REFERENCES if name in merged):
        if _has_lists(rows, several):
            yield from (((merged[name],), several) for name in naming.INPUTS if name in merged)


def _mostly(rows: Sequence[Row]) -> bool:
    return 2 * sum(is_chat(row["chat"]) for row in rows) > len(rows)


def _has_lists(rows: Sequence[Row], column: str) -> bool:
    sample = with_parsed([{column: row.get(column)} for row in rows[:100]], [column])
    return any(is_strings(row[column]) and row[column] for row in sample)


def _plain(rows: Sequence[Row], merged: dict[str, str]) -> Iterator[Found]:
    """One column of texts, beside it only what tells of them."""
    known = next((merged[name] for name in naming.TEXTS if name in merged), None)
    others = [key for key, name in merged.items() if name != known]
    if known is not None:
        strings = all(isinstance(row.get(known), (str, type(None))) for row in rows)
        telling = all(other in naming.BESIDE or is_id(other) for other in others)
        if strings and telling and not guess_label(rows, [merged[other] for other in others], ()):
            yield (known,), ""
        return
    only = [name for key, name in merged.items() if not is_id(key)]
    if len(only) == 1 and looks_like_text([row.get(only[0]) for row in rows]):
        yield (only[0],), ""


FINDERS: dict[Task, Callable[[Sequence[Row], dict[str, str]], Iterator[Found]]] = {
    "tag": _tagged,
    "span": _asked,
    "generate": _written,
    "lm": _plain,
}
"""What finds the columns of a task by their names, in this order."""


# --- doubt ---


def _few_answers(rows: Sequence[Row], found: Found) -> bool:
    """Whether the outputs are so few that they look like classes."""
    answers = [row.get(found[1]) for row in rows]
    if len(answers) < ENOUGH or not all(isinstance(answer, (str, int, float)) for answer in answers):
        return False
    return len(set(answers)) * FEW_ANSWERS <= len(answers)


def _few_message(rows: Sequence[Row], found: Found) -> str:
    count = len({row.get(found[1]) for row in rows})
    try:
        columns = choose(rows, label=found[1])
        classes = columns.text, columns.label
    except DeltatuneError:
        classes = found
    return (
        f"the task is not clear: column {found[1]!r} has {count} different values in {len(rows)} rows. Say which:\n"
        f"  --task classify {_options(classes)}\n  --task generate {_options(found)}"
    )


def _refuse_texts_as_labels(rows: Sequence[Row], told: Found) -> None:
    """Where the named label has another value in nearly every row: are they classes, or texts to be written?"""
    text, label = told
    values = [row.get(label) for row in rows]
    if len(values) < ENOUGH or not looks_like_text(values) or not all(name in row for row in rows for name in text):
        return
    raise DeltatuneError(
        f"the task is not clear: column {label!r} has {len(set(values))} different values in {len(rows)} rows "
        f"({column_examples(rows, [label])}). Say which:\n"
        f"  --task generate {_options(told)}\n  --task classify {_options(told)}"
    )


def _options(found: Found) -> str:
    """`--text A --text B --label C`."""
    return " ".join([*(f"--text {name}" for name in found[0]), *([f"--label {found[1]}"] if found[1] else [])])
