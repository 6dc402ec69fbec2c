"""Checks of whole data sets: problems, which stop training, and remarks, which do not. Each is one sentence."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from deltatune.data.columns.choose_columns import Columns
from deltatune.data.dataset import Data, Row, texts
from deltatune.data.formats.file_format import first_few
from deltatune.data.layouts import LAYOUTS
from deltatune.data.layouts.layout import count, in_rows, missing_values

SMALL_SPLIT = 100
"""Rows of a split below which one row is more than a point."""

DAMAGE = {
    "control characters": re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"),
    "replacement characters (U+FFFD), where a file was read in a wrong encoding": re.compile("\ufffd"),
    "letters such as 'Ã©' and 'â€™', UTF-8 read as another encoding": re.compile(
        "[ÂÃ][\x80-\xbf]|â€[\x80-\xbf\u2018-\u201e\u2122\u0153\u0161\u00a6\u02dc]|ï¿½|ðŸ"
    ),
}
"""Characters of texts that were damaged before they came here."""


def problems(data: Data) -> list[str]:
    """Everything that makes training or scoring on `data` impossible or meaningless, one sentence each.

    For data that were built by hand: `read` has checked its rows while it converted them.
    """
    if data.task in ("classify", "regression"):  # its labels are converted already
        rows = data.splits().items()
        missing = [sentence for split, part in rows for sentence in missing_values(part, split, data.text, data.label)]
        return missing + split_problems(data)
    converted = LAYOUTS[data.task].convert(data.splits(), Columns(data.text, data.label), (data.kind,))
    return converted.problems + (_too_few_rows(data) if converted.problems else split_problems(data))


def split_problems(data: Data) -> list[str]:
    """What is wrong with whole splits whose rows have no faults, one sentence each."""
    return _too_few_rows(data) + LAYOUTS[data.task].problems(data)


def remarks(data: Data) -> list[str]:
    """What makes a score on `data` mean less than it seems, one sentence each. `data` must be without problems."""
    return (
        _rows_in_two_splits(data)
        + _duplicates(data)
        + LAYOUTS[data.task].remarks(data)
        + (_small_splits(data) if data.task != "lm" else [])
        + _damaged_characters(data)
    )


def _too_few_rows(data: Data) -> list[str]:
    """Splits that are too small to learn from or to score on."""
    fewest = LAYOUTS[data.task].min_rows
    return [
        f"{split} has {count(len(rows), 'row')}; at least {fewest} are needed. Give more rows or a {split} file."
        for split, rows in data.splits().items()
        if len(rows) < fewest
    ]


def _rows_in_two_splits(data: Data) -> list[str]:
    """Texts of one split that occur in another."""
    keys = {split: [texts(row, data.text) for row in rows] for split, rows in data.splits().items()}
    distinct = {split: set(split_keys) for split, split_keys in keys.items()}
    sentences = []
    for split, other in (("validation", "train"), ("test", "train"), ("test", "validation")):
        shared = [number for number, key in enumerate(keys[split], start=1) if key in distinct[other]]
        if shared:
            numbers = first_few([str(number) for number in shared])
            sentences.append(
                f"{len(shared)} of {len(keys[split])} {split} rows ({numbers}) also occur in {other}: "
                "scores on them measure memory."
            )
    return sentences


def _duplicates(data: Data) -> list[str]:
    """Rows that repeat an earlier one of their split, with the same label."""
    sentences = []
    for split, rows in data.splits().items():
        seen: set[tuple[str, ...]] = set()
        repeats = []
        for number, row in enumerate(rows, start=1):
            key = (*texts(row, data.text), repr(_label(row, data)))
            if key in seen:
                repeats.append(number)
            seen.add(key)
        if repeats:
            verb = "repeats" if len(repeats) == 1 else "repeat"
            sentences.append(f"{split}: {in_rows(repeats)} {verb} an earlier row.")
    return sentences


def _label(row: Row, data: Data) -> object:
    return row.get("references") if data.kind == "text" else row.get(data.label)


def _small_splits(data: Data) -> list[str]:
    """Splits so small that one row moves the score by more than a point."""
    return [
        f"{split} has {len(rows)} rows: each row counts {100 / len(rows):.1f} percentage points; small differences may "
        "be chance."
        for split, rows in (("validation", data.validation), ("test", data.test))
        if 0 < len(rows) < SMALL_SPLIT
    ]


def _damaged_characters(data: Data) -> list[str]:
    """Characters that come from a wrong encoding or from binary data."""
    columns = {*data.text, *([data.label] if data.kind == "text" else [])}
    sentences = []
    for split, rows in data.splits().items():
        strings = ["\n".join(_strings(row[column] for column in columns)) for row in rows]
        for what, pattern in DAMAGE.items():
            numbers = [number for number, text in enumerate(strings, start=1) if pattern.search(text)]
            if numbers:
                sentences.append(f"{split}: there are {what} in {in_rows(numbers)}.")
    return sentences


def _strings(values: Iterable[Any]) -> Iterator[str]:
    """Every string in values of any shape."""
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            yield from _strings(value.values())
        elif isinstance(value, (list, tuple)):
            yield from _strings(value)
