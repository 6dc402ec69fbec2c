"""The rows of every split in the shape of their task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deltatune.core.errors import nearest, raise_all
from deltatune.data.checks.missing_values import gaps
from deltatune.data.columns.column_names import CHATS
from deltatune.data.columns.label_columns import Columns, names_of
from deltatune.data.formats.files import Row
from deltatune.data.layouts import generation_rows as written
from deltatune.data.layouts import tagging_rows as tags
from deltatune.data.layouts.conversations import MESSAGES
from deltatune.data.layouts.label_values import convert, is_absent
from deltatune.data.layouts.layout import Shaped
from deltatune.data.layouts.layout_registry import SHAPES
from deltatune.data.task_types import TASK_OF, Kind, Task

Parts = dict[str, list[Row]]


@dataclass(frozen=True)
class ShapedParts:
    """All splits."""

    parts: Parts
    """The rows that can be used."""
    problems: list[str]
    """What is wrong with the others."""
    notes: list[str]
    """What was decided on the way."""


def shape(task: Task, parts: Parts, columns: Columns) -> ShapedParts:
    """Every split in the shape of the task."""
    found = {split: _shape(task, rows, split, columns) for split, rows in parts.items()}
    problems = [problem for shaped in found.values() for problem in shaped.problems]
    notes = [note for shaped in found.values() for note in shaped.notes]
    return ShapedParts({split: shaped.rows for split, shaped in found.items()}, problems, notes)


def _shape(task: Task, rows: list[Row], split: str, columns: Columns) -> Shaped:
    if task == "generate" and columns.text == (columns.label,):  # a chat, whatever its column is called
        from_chat = [{MESSAGES if name == columns.label else name: v for name, v in row.items()} for row in rows]
        return written.shape(from_chat, split, (MESSAGES,), MESSAGES)
    return SHAPES[task](rows, split, columns.text, columns.label)


def examples(rows: Sequence[Row], kind: Kind, text: Sequence[str], label: str) -> list[Row]:
    """Rows with labels in the shape that the rows of `read` have, none held out: to score with.

    Raises DeltatuneError naming columns that are missing and rows that cannot be used.
    """
    rows = _chats_named(rows, text)
    scored = label and not (kind == "text" and written.REFERENCES in names_of(rows))
    _need(rows, [*text, *([label] if scored else [])])
    if TASK_OF[kind] in ("classify", "regression"):
        raise_all(gaps(rows, "rows", text, label))
        values = convert([row[label] for row in rows], label, kind)
        return [{**row, label: value} for row, value in zip(rows, values, strict=True)]
    found = _shape(TASK_OF[kind], rows, "rows", Columns(tuple(text), label, ()))
    raise_all(found.problems)
    return found.rows


def inputs(rows: Sequence[Row], task: Task, text: Sequence[str]) -> list[Row]:
    """Rows without labels in the shape that the rows of `read` have, for prediction.

    Raises DeltatuneError naming columns that are missing and rows that cannot be used.
    """
    if task in ("classify", "regression"):
        return list(rows)
    rows = _chats_named(rows, text)
    _need(rows, text)
    found = SHAPES[task](rows, "rows", text, None)
    raise_all(found.problems)
    return found.rows


def _chats_named(rows: Sequence[Row], text: Sequence[str]) -> list[Row]:
    """Rows whose chats are in `messages`, whatever their file calls them; others as they are."""
    names = names_of(rows)
    other = next((name for name in CHATS if name in names), MESSAGES)
    if tuple(text) != (MESSAGES,) or other == MESSAGES:
        return list(rows)
    return [{MESSAGES if name == other else name: value for name, value in row.items()} for row in rows]


def _need(rows: Sequence[Row], columns: Sequence[str]) -> None:
    """Raise DeltatuneError for columns that no row has."""
    names = names_of(rows)
    raise_all(
        [
            f"there is no column {name!r}{nearest(name, names) or '.'} The columns are: {', '.join(names)}."
            for name in columns
            if name not in names
        ]
    )


def hashed(task: Task, text: tuple[str, ...]) -> tuple[str, ...]:
    """The columns that decide on which side a row lands: of a question on a context the context alone.

    So all questions on one context stay together; else the answers of validation would have been read in training.
    """
    return text[-1:] if task == "span" else text


def tags_of(parts: Parts, label: str) -> tuple[str, ...]:
    """Every tag of every split."""
    return tags.in_order(tag for rows in parts.values() for row in rows for tag in row[label])


def without_unlabelled_test(parts: Parts, label: str) -> tuple[Parts, list[str]]:
    """Leave out a test split without any label: benchmarks publish theirs so, and nothing can be scored on it."""
    test = parts.get("test", [])
    if not test or any(not is_absent(row.get(label)) or row.get(written.REFERENCES) for row in test):
        return parts, []
    kept = {split: rows for split, rows in parts.items() if split != "test"}
    return kept, [f"the {len(test)} test rows have no label, so they are not used"]


def absent_columns(parts: Parts, columns: Sequence[str]) -> list[str]:
    """Columns that the training rows have and another split lacks altogether."""
    return [
        f"{split} has no column {column!r}, train has. The columns of {split} are: {', '.join(names)}."
        for split, names in ((split, names_of(rows)) for split, rows in parts.items())
        for column in columns
        if column not in names
    ]
