"""Rows with class names, sets of class names or numbers for labels."""

from __future__ import annotations

from dataclasses import dataclass

from deltatune.core.errors import DeltatuneError
from deltatune.data.checks.gaps import gaps, has_text
from deltatune.data.columns import Columns
from deltatune.data.formats import Row
from deltatune.data.kinds import Kind, Task
from deltatune.data.labels import convert, in_order, is_absent, kind_of

Parts = dict[str, list[Row]]


@dataclass(frozen=True)
class Labelled:
    """All splits."""

    parts: Parts
    """The rows that can be used."""
    kind: Kind
    """What their labels are."""
    problems: list[str]
    """Texts and labels that are not there."""
    unusable: list[str]
    """Labels that cannot be converted; their splits lack those rows, so that nothing further can be checked."""
    notes: list[str]
    """The guess of the kind."""

    def names(self, train: list[Row], label: str) -> tuple[str, ...]:
        """The class names of the training rows."""
        if self.kind == "number":
            return ()
        return in_order({name for row in train for name in (row[label] if self.kind == "many" else [row[label]])})


def labelled(parts: Parts, columns: Columns, forced: Kind | None, task: Task | None) -> Labelled:
    """Convert the labels of all rows that have text and label."""
    label = columns.label
    parts = {split: _empty_sets(rows, label, parts, forced) for split, rows in parts.items()}
    wrong = [problem for split, rows in parts.items() for problem in gaps(rows, split, columns.text, label)]
    parts = {split: [row for row in rows if _is_whole(row, columns)] for split, rows in parts.items()}
    values = [row[label] for rows in parts.values() for row in rows]
    kind, note = kind_of(values, label, forced)
    if kind == "number" and forced is None and task == "classify":
        kind, note = "classes", None
    converted: Parts = {}
    unusable = []
    for split, rows in parts.items():
        try:
            converted[split] = _converted(rows, label, kind)
        except DeltatuneError as error:
            unusable.append(f"{split}: {error}")
            converted[split] = []
    return Labelled(converted, kind, wrong, unusable, [note] if note else [])


def _empty_sets(rows: list[Row], label: str, parts: Parts, forced: Kind | None) -> list[Row]:
    """Where labels are sets, a blank cell of a table is the empty one."""
    there = [row[label] for part in parts.values() for row in part if not is_absent(row.get(label))]
    if not there or kind_of(there, label, forced)[0] != "many":
        return rows
    blank = [isinstance(row.get(label), str) and is_absent(row[label]) for row in rows]
    return [{**row, label: "[]"} if none else row for row, none in zip(rows, blank, strict=True)]


def _converted(rows: list[Row], label: str, kind: Kind) -> list[Row]:
    values = convert([row[label] for row in rows], label, kind)
    return [{**row, label: value} for row, value in zip(rows, values, strict=True)]


def _is_whole(row: Row, columns: Columns) -> bool:
    return not is_absent(row.get(columns.label)) and all(has_text(row, column) for column in columns.text)
