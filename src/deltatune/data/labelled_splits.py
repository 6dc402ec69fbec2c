"""Which splits of a source can be scored: published test rows often have no labels, and some rows have none anywhere.

The rule: test rows without labels are not used, and the published validation rows take their place, so that scores can
be compared with published ones; validation rows are then made of training rows. Each of these steps is a note.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from deltatune.data.columns.column_names import GOLD_LABEL, NO_GOLD, REFERENCES, normalised
from deltatune.data.columns.column_values import is_missing
from deltatune.data.dataset import SPLITS, Row, Splits, columns_of

HIDDEN = (-1, "-1", "-1.0")
"""Labels of test rows that are not public. -1.0 equals -1."""


def labelled_splits(
    splits: Splits, text: Sequence[str], label: str, known: Collection[str], fixed: Collection[str]
) -> tuple[Splits, list[str]]:
    """The splits that can be scored, named as they are used, and notes.

    - `known`: columns whose classes the source names; a missing value there is a label that nobody knows.
    - `fixed`: splits that the user named a file for; they stay as they are.
    """
    if not label:
        return splits, []
    notes: list[str] = []
    kept: Splits = {}
    for name, rows in splits.items():
        if name not in fixed and name.startswith("test") and _are_hidden(rows, label, splits["train"]):
            notes.append(f"the {len(rows)} {name} rows have no label, so they are not used")
        elif name not in SPLITS and (reason := _unusable(rows, text, label)):
            notes.append(f"{name} is not used: {reason}")
        else:
            kept[name] = rows
    kept, renamed = _with_test(kept)
    kept, dropped = _without_unknown(kept, label, known)
    return kept, [*notes, *renamed, *dropped]


def _are_hidden(rows: Sequence[Row], label: str, train: Sequence[Row]) -> bool:
    """Whether no row has a label: it is missing, -1, which train does not have, or empty, which is rare in train."""
    if not rows:
        return False
    values = [row.get(label) for row in rows]
    if all(map(_is_missing, values)):
        return not any(row.get(REFERENCES) for row in rows)
    if all(map(_is_hidden, values)):
        return not any(_is_hidden(row.get(label)) for row in train)
    return all(map(_is_empty, values)) and sum(_is_empty(row.get(label)) for row in train) * 2 < len(train)


def _is_missing(value: Any) -> bool:
    """Whether there is no value, or a list of none."""
    return bool(value) and all(map(is_missing, value)) if isinstance(value, list) else is_missing(value)


def _is_hidden(value: Any) -> bool:
    """Whether a value, or every item of a list, is -1."""
    if isinstance(value, list):
        return bool(value) and all(map(_is_hidden, value))
    return not isinstance(value, dict) and value in HIDDEN


def _is_empty(value: Any) -> bool:
    """Whether there are no answers or references: an empty list, or the hub's object of empty lists."""
    if isinstance(value, dict):
        return bool(value) and all(isinstance(items, list) and not items for items in value.values())
    return isinstance(value, list) and not value


def _unusable(rows: Sequence[Row], text: Sequence[str], label: str) -> str:
    """Why a further split cannot be scored, or ""."""
    names = columns_of(rows)
    absent = [column for column in text if column not in names]
    if absent:
        return f"it has no column {absent[0]!r}"
    values = [row.get(label) for row in rows]
    if all(_is_missing(value) or _is_hidden(value) for value in values) and REFERENCES not in names:
        return f"its {len(rows)} rows have no label"
    return ""


def _with_test(splits: Splits) -> tuple[Splits, list[str]]:
    """A test split from the further ones where there is none, else the further validation splits as test splits."""
    if "test" in splits:
        return splits, []
    first = next((name for name in splits if name.startswith("test_")), None)
    if first is not None:
        renamed = {"test" if name == first else name: rows for name, rows in splits.items()}
        return renamed, [f"{first} is the test split"]
    names = {name: name.replace("validation_", "test_", 1) for name in splits if name.startswith("validation_")}
    notes = [f"{old} is scored at the end, as {new}" for old, new in names.items()]
    return {names.get(name, name): rows for name, rows in splits.items()}, notes


def _without_unknown(splits: Splits, label: str, known: Collection[str]) -> tuple[Splits, list[str]]:
    """The splits without the rows on whose label the annotators did not agree, which the source marks."""
    kept, notes = {}, []
    gold = normalised(label) == GOLD_LABEL
    for name, rows in splits.items():
        kept[name] = [
            row
            for row in rows
            if not ((label in known and row.get(label) is None) or (gold and row.get(label) == NO_GOLD))
        ]
        dropped = len(rows) - len(kept[name])
        if dropped:
            notes.append(f"{name}: {dropped} of {len(rows)} rows have no gold label, so they are not used")
    return kept, notes
