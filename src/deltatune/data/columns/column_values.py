"""What the values of a column are: texts, labels, numbers, lists, JSON in strings, chats, or missing."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from deltatune.data.dataset import Row
from deltatune.data.formats.file_format import first_few

NUMERIC = re.compile(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*")

VISIBLE = re.compile("[^\\s\x00-\x1f\x7f-\x9f\u00ad\u200b-\u200f\u2060-\u2064\ufe00-\ufe0f\ufeff]")
"""A character of a text; tokenizers drop the others, or have no token for them."""

MAX_WHOLE_CLASSES = 20
"""Up to this many different whole numbers are classes, even if written as 3.0."""
MIN_ROWS_PER_CLASS = 5
"""Rows of a class on average; whole numbers with fewer rows each are continuous values."""
MAX_CLASSES = 100
"""A column with more different values is not taken for the label."""

SAMPLE = 100
"""Rows that are looked at to tell what a column holds."""


WRITTEN_LIST = re.compile(r"""\s*\[\s*['"].*['"]\s*\]\s*""", re.DOTALL)
"""A list of strings in a string, also as Python and numpy write it."""

# --- missing and text ---


def is_missing(value: object) -> bool:
    """Whether there is no value: None, NaN or a blank string."""
    return (
        value is None
        or (isinstance(value, float) and math.isnan(value))
        or (isinstance(value, str) and not value.strip())
    )


def has_text(value: object) -> bool:
    """Whether a value is a string with a visible character: more than white space, control and format characters."""
    return isinstance(value, str) and (value[:1].isalnum() or VISIBLE.search(value) is not None)


def has_words(value: object) -> bool:
    """Whether a value is a text, or a list of words with one that is more than white space."""
    if isinstance(value, str):
        return has_text(value)
    words = value if isinstance(value, (list, tuple)) else [value]
    return all(isinstance(word, str) for word in words) and any(map(has_text, words))


def looks_like_text(values: Sequence[object]) -> bool:
    """Whether the values are strings, not all of them numbers, and more than half of them different."""
    strings = [value for value in values if isinstance(value, str)]
    return (
        len(strings) == len(values)
        and not all(NUMERIC.fullmatch(value) for value in strings)
        and len(set(strings)) * 2 > len(strings)
    )


# --- labels and numbers ---


def looks_like_label(values: Sequence[object]) -> bool:
    """Whether the values are classes (2 to MAX_CLASSES, each in two rows on average) or continuous numbers."""
    if any(isinstance(value, (list, dict)) for value in values):
        return False
    if are_real(values) or are_continuous(values):
        return True
    return 2 <= len(set(values)) <= min(MAX_CLASSES, len(values) // 2)


def is_numeric(value: object) -> bool:
    """Whether a value is a number or a string that spells one; a bool is a class."""
    if isinstance(value, str):
        return NUMERIC.fullmatch(value) is not None
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_real(value: object) -> bool:
    """Whether a value is a float, or a string written like one: "3.0" but not "3"."""
    if isinstance(value, str):
        return NUMERIC.fullmatch(value) is not None and not value.strip().lstrip("+-").isdigit()
    return isinstance(value, float)


def are_real(values: Sequence[object]) -> bool:
    """Whether all values are numbers and some are written as real numbers."""
    return all(map(is_numeric, values)) and any(map(is_real, values))


def are_continuous(values: Sequence[object]) -> bool:
    """Whether whole numbers look like continuous values (prices, years): many, widely spaced, few rows each.

    Class numbers are close together, and row numbers go up by one.
    """
    if not values or not all(map(is_numeric, values)):
        return False
    numbers = [float(str(value)) for value in values]
    distinct = set(numbers)
    many = len(distinct) > MAX_WHOLE_CLASSES and len(distinct) * MIN_ROWS_PER_CLASS > len(numbers)
    return many and 2 * len(distinct) < max(distinct) - min(distinct) + 1


# --- lists, JSON and chats ---


def is_strings(value: object) -> bool:
    """Whether a value is a list of strings."""
    return isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)


def is_chat(value: Any) -> bool:
    """Whether a value is a list of messages, with role and content or with from and value."""
    return (
        isinstance(value, (list, tuple))
        and bool(value)
        and all(
            isinstance(m, Mapping) and ({"role", "content"} <= set(m) or {"from", "value"} <= set(m)) for m in value
        )
    )


def with_parsed(rows: Sequence[Row], columns: Sequence[str]) -> list[Row]:
    """The rows with JSON lists and objects parsed, in columns where every cell is a string with one (as in CSV)."""
    parsed = {column: cells for column in columns if (cells := _all_parsed([row.get(column) for row in rows]))}
    if not parsed:
        return list(rows)
    return [{**row, **{column: cells[i] for column, cells in parsed.items()}} for i, row in enumerate(rows)]


def _all_parsed(cells: list[Any]) -> list[Any] | None:
    """Every cell parsed, or None where one is not a string with a JSON list or object."""
    values = []
    for cell in cells:
        if not isinstance(cell, str) or cell.strip()[:1] not in ("[", "{"):
            return None
        try:
            values.append(json.loads(cell))
        except (json.JSONDecodeError, RecursionError):
            return None
    return values


def sample_parsed(rows: Sequence[Row], *columns: str) -> list[tuple[Any, ...]]:
    """The cells of these columns in the first rows, JSON parsed."""
    sample = with_parsed([{name: row.get(name) for name in columns} for row in rows[:SAMPLE]], columns)
    return [tuple(row[name] for name in columns) for row in sample]


# --- for messages ---


def column_examples(rows: Sequence[Row], names: Sequence[str]) -> str:
    """Each column with its first value: "text (e.g. 'a film'), label (e.g. 1)"."""
    return first_few([f"{name} (e.g. {_short(_first_value(rows, name))})" for name in names], 12) if names else "none"


def _first_value(rows: Sequence[Row], name: str) -> object:
    return next((row[name] for row in rows if row.get(name) not in (None, "")), None)


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 40 else shown[:36] + "...'"
