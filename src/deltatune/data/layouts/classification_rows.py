"""Rows with class names, sets of class names or numbers for labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.data.checks.missing_values import gaps, has_text
from deltatune.data.columns.label_columns import Columns, is_id, names_of
from deltatune.data.formats.files import Row, some
from deltatune.data.layouts.label_values import convert, in_order, is_absent, kind_of
from deltatune.data.task_types import Kind, Task

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


VALUES = {"1": True, "1.0": True, "true": True, "yes": True, "0": False, "0.0": False, "false": False, "no": False}
BETWEEN = ","


def flag_columns(rows: Sequence[Row], label: str | None) -> list[str]:
    """The columns that a label stands for, where it is several names with commas between them; else none.

    Raises DeltatuneError where some of the names are columns and others are not.
    """
    names = names_of(rows)
    if label is None or BETWEEN not in label or label in names:
        return []
    wanted = [name.strip() for name in label.split(BETWEEN) if name.strip()]
    missing = [name for name in wanted if name not in names]
    if len(missing) == len(wanted):
        return []
    raise_all([f"--label {label}: there is no column {name!r}{nearest(name, names) or '.'}" for name in missing])
    return list(dict.fromkeys(wanted))


def gathered(rows: Sequence[Row], columns: Sequence[str], label: str, split: str) -> list[Row]:
    """The rows with the names of the columns that are 1 as a list under `label`, in place of those columns.

    Raises DeltatuneError for other values than 0 and 1, true and false, yes and no.
    """
    found, wrong = [], []
    for i, row in enumerate(rows, start=1):
        values = {name: VALUES.get(str(row.get(name)).strip().lower()) for name in columns}
        wrong += [f"row {i}: {name} is {row.get(name)!r}" for name, value in values.items() if value is None]
        others = {name: value for name, value in row.items() if name not in values}
        found.append({**others, label: [name for name, value in values.items() if value]})
    if wrong:
        raise DeltatuneError(f"{split}: {some(wrong)}. A column for a class holds 1 or 0, true or false, yes or no.")
    return found


def gathered_where_asked(rows: Sequence[Row], label: str | None, split: str) -> list[Row]:
    """The rows, gathered where the label is several columns."""
    columns = flag_columns(rows, label)
    return gathered(rows, columns, str(label), split) if columns else list(rows)


def option(rows: Sequence[Row], text: Sequence[str]) -> str:
    """What to add to an error on unclear labels: that several columns may be meant, where there are such."""
    names = [name for name in names_of(rows) if name not in text and not is_id(name)]
    flags = [name for name in names if {str(row.get(name)).strip().lower() for row in rows} <= VALUES.keys()]
    return f"A column for each class, several a row: --label {BETWEEN.join(flags)}" if len(flags) > 1 else ""
