"""Which task the columns are for, where there is no doubt; and what could be meant where there is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from deltatune.core.errors import DeltatuneError
from deltatune.data import naming
from deltatune.data.chats import is_chat
from deltatune.data.columns import LABELS, column_examples, guess_label, is_id, looks_like_text, names_of
from deltatune.data.formats import Row
from deltatune.data.kinds import Task
from deltatune.data.shaped import is_strings, with_parsed

FEW_ANSWERS = 5  # rows an answer; where each occurs that often they are classes
ENOUGH = 20  # rows to judge that by

Found = tuple[tuple[str, ...], str]
"""Text columns and label column."""


def guess_task(rows: Sequence[Row], text: Sequence[str], label: str | None) -> tuple[Task | None, str]:
    """The task and a sentence on why, or (None, "") where the columns are those of classification or regression.

    `text` and `label` are what the user named; a guess never contradicts them. Raises DeltatuneError where it is not
    clear, with the options to choose from.
    """
    names = names_of(rows)
    folded = {name.strip().lower(): name for name in reversed(names)}
    for task, find in FINDERS.items():
        found = find(rows, folded)
        if found and _agrees(found, text, label):
            if task == "generate" and _few_answers(rows, found):
                if found[1].strip().lower() in LABELS:
                    return None, ""
                raise DeltatuneError(_few_message(rows, found))
            return task, f"the task is {task}, a guess from the names of the columns"
    if text and label:
        _refuse_texts_as_labels(rows, text, label)
    return None, ""


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


def _tagged(rows: Sequence[Row], folded: dict[str, str]) -> Found | None:
    """A column of tokens and one of tags: lists, or strings with as many parts."""
    for tokens in (folded[name] for name in naming.TOKENS if name in folded):
        present = [folded[name] for name in naming.TAGS if name in folded]
        fit = [name for name in present if _parallel(rows, tokens, name)]
        if fit:
            return (tokens,), fit[0]
    return None


def _parallel(rows: Sequence[Row], tokens: str, tags: str) -> bool:
    """Whether most rows have lists in both columns, or strings of more than one word with as many tags."""
    sample = with_parsed([{tokens: row.get(tokens), tags: row.get(tags)} for row in rows[:100]], [tokens, tags])
    pairs = [(row[tokens], row[tags]) for row in sample]
    lists = sum(isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) for one, other in pairs)
    strings = [(a.split(), b.split()) for a, b in pairs if isinstance(a, str) and isinstance(b, str)]
    equal = sum(len(one) == len(other) for one, other in strings)
    several = any(len(one) > 1 for one, _ in strings)
    return 2 * lists > len(pairs) or (several and 2 * equal > len(pairs))


def _asked(rows: Sequence[Row], folded: dict[str, str]) -> Found | None:
    """question, context and answers."""
    names = "question", "context", "answers"
    return ((folded["question"], folded["context"]), folded["answers"]) if all(n in folded for n in names) else None


def _written(rows: Sequence[Row], folded: dict[str, str]) -> Found | None:
    """A chat, or a pair of columns whose names say that one is written from the other."""
    for name in naming.CHATS:
        if name in folded and _mostly(with_parsed([{"chat": row.get(folded[name])} for row in rows[:100]], ["chat"])):
            return (folded[name],), folded[name]
    for inputs, output in naming.WRITING:
        if output in folded and all(name in folded for name in inputs):
            return tuple(folded[name] for name in inputs), folded[output]
    several = [name for name in naming.REFERENCES if name in folded and _has_lists(rows, folded[name])]
    for name in naming.INPUTS if several else ():
        if name in folded:
            return (folded[name],), folded[several[0]]
    return None


def _mostly(rows: Sequence[Row]) -> bool:
    return 2 * sum(is_chat(row["chat"]) for row in rows) > len(rows)


def _has_lists(rows: Sequence[Row], column: str) -> bool:
    sample = with_parsed([{column: row.get(column)} for row in rows[:100]], [column])
    return any(is_strings(row[column]) and row[column] for row in sample)


def _plain(rows: Sequence[Row], folded: dict[str, str]) -> Found | None:
    """One column of texts, beside it only what tells of them."""
    for known in naming.TEXTS:
        name = folded.get(known)
        if name is None:
            continue
        others = [other for other in folded if folded[other] != name]
        strings = all(isinstance(row.get(name), (str, type(None))) for row in rows)
        telling = all(other in naming.BESIDE or is_id(other) for other in others)
        if strings and telling and not guess_label(rows, [folded[other] for other in others], ()):
            return (name,), ""
        return None
    only = [name for key, name in folded.items() if not is_id(key)]
    if len(only) == 1 and looks_like_text([row.get(only[0]) for row in rows]):
        return (only[0],), ""
    return None


FINDERS: dict[Task, Callable[[Sequence[Row], dict[str, str]], Found | None]] = {
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
    if len(answers) < ENOUGH or not all(isinstance(answer, str) for answer in answers):
        return False
    return len(set(answers)) * FEW_ANSWERS <= len(answers)


def _few_message(rows: Sequence[Row], found: Found) -> str:
    text = " ".join(f"--text {name}" for name in found[0])
    count = len({row.get(found[1]) for row in rows})
    return (
        f"the task is not clear: column {found[1]!r} has {count} different values in {len(rows)} rows. Say which:\n"
        f"  --task classify {text} --label {found[1]}\n  --task generate {text} --label {found[1]}"
    )


def _refuse_texts_as_labels(rows: Sequence[Row], text: Sequence[str], label: str) -> None:
    """Where the named label has another value in nearly every row: are they classes, or texts to be written?"""
    values = [row.get(label) for row in rows]
    if len(values) < ENOUGH or not looks_like_text(values) or not all(name in row for row in rows for name in text):
        return
    given = " ".join(f"--text {name}" for name in text)
    raise DeltatuneError(
        f"the task is not clear: column {label!r} has {len(set(values))} different values in {len(rows)} rows "
        f"({column_examples(rows, [label])}). Say which:\n"
        f"  --task generate {given} --label {label}\n  --task classify {given} --label {label}"
    )
