"""Checks of every kind of data: too few rows, rows that occur twice, characters that came out wrong."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from deltatune.data.formats.files import Row, some
from deltatune.data.layouts.row_problems import count, in_rows
from deltatune.data.splits import Data, texts

FEWEST_ROWS = 2  # in each split
SHORT = 100  # rows; below it one row is more than a point

ODD = {
    "control characters": re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"),
    "replacement characters (U+FFFD), where a file was read in a wrong encoding": re.compile("\ufffd"),
    "letters such as 'Ã©' and 'â€™', UTF-8 read as another encoding": re.compile(
        "[ÂÃ][\x80-\xbf]|â€[\x80-\xbf\u2018-\u201e\u2122\u0153\u0161\u00a6\u02dc]|ï¿½|ðŸ"
    ),
}
"""What texts have where something went wrong before they came here."""


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
        shared = [number for number, key in enumerate(keys[split], start=1) if key in sets[other]]
        if shared:
            which = some([str(number) for number in shared])
            found.append(
                f"{len(shared)} of {len(keys[split])} {split} rows ({which}) also occur in {other}: "
                "scores on them show memory."
            )
    return found


def duplicates(data: Data) -> list[str]:
    """Rows of one split that repeat an earlier one, label and all."""
    found = []
    for split, rows in data.splits().items():
        seen: set[tuple[str, ...]] = set()
        again = []
        for number, row in enumerate(rows, start=1):
            key = (*texts(row, data.text), repr(_answer(row, data)))
            if key in seen:
                again.append(number)
            seen.add(key)
        if again:
            found.append(f"{split}: {in_rows(again)} {'repeats' if len(again) == 1 else 'repeat'} an earlier row.")
    return found


def _answer(row: Row, data: Data) -> object:
    return row.get("references") if data.kind == "text" else row.get(data.label)


def odd_characters(data: Data) -> list[str]:
    """Characters that no one wrote."""
    found = []
    for split, rows in data.splits().items():
        columns = {*data.text, *([data.label] if data.kind == "text" else [])}
        everything = ["\n".join(_strings(row[column] for column in columns)) for row in rows]
        for what, pattern in ODD.items():
            numbers = [number for number, text in enumerate(everything, start=1) if pattern.search(text)]
            if numbers:
                found.append(f"{split}: there are {what} in {in_rows(numbers)}.")
    return found


def _strings(values: Iterable[Any]) -> Iterator[str]:
    """Every string in values of any shape."""
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            yield from _strings(value.values())
        elif isinstance(value, (list, tuple)):
            yield from _strings(value)


def short_splits(data: Data) -> list[str]:
    """Splits so short that one row moves the score by more than a point."""
    return [
        f"{split} has {len(rows)} rows: one row is {100 / len(rows):.1f} points, so small differences are chance."
        for split, rows in (("validation", data.validation), ("test", data.test))
        if 0 < len(rows) < SHORT
    ]
