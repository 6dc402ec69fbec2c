"""Checks of every kind of data: too few rows, and rows of one split in another."""

from __future__ import annotations

from deltatune.data.faults import count
from deltatune.data.splits import Data, texts

FEWEST_ROWS = 2  # in each split
SHORT = 100  # rows; below it one row is more than a point


def too_few(data: Data, fewest: int = FEWEST_ROWS) -> list[str]:
    """Splits that nothing can be learned from, or scored on."""
    return [
        f"{split} has {count(len(rows), 'row')}; at least {fewest} are needed. Give more rows or a {split} file."
        for split, rows in data.splits().items()
        if len(rows) < fewest
    ]


def repeated(data: Data) -> list[str]:
    """Texts of one split that occur in another."""
    keys = {split: [texts(row, data.text) for row in rows] for split, rows in data.splits().items()}
    sets = {split: set(found) for split, found in keys.items()}
    found = []
    for split, other in (("validation", "train"), ("test", "train"), ("test", "validation")):
        shared = sum(key in sets[other] for key in keys[split])
        if shared:
            total = len(keys[split])
            found.append(f"{shared} of {total} {split} rows also occur in {other}: scores on them show memory.")
    return found


def short_splits(data: Data) -> list[str]:
    """Splits so short that one row moves the score by more than a point."""
    return [
        f"{split} has {len(rows)} rows: one row is {100 / len(rows):.1f} points, so small differences are chance."
        for split, rows in (("validation", data.validation), ("test", data.test))
        if 0 < len(rows) < SHORT
    ]
