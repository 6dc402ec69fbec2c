"""Whether values are quantities, or names that happen to be written in digits."""

from __future__ import annotations

import re
from collections.abc import Sequence

NUMERIC = re.compile(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*")

FEW = 20
"""Whole values up to so many are classes, however they are written."""
ROWS_A_CLASS = 5
"""Rows that a class has at least on average."""


def is_numeric(value: object) -> bool:
    """A number or a string that spells one; a bool is a class."""
    if isinstance(value, str):
        return NUMERIC.fullmatch(value) is not None
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_real(value: object) -> bool:
    """A float, or a string written like one: "3.0" but not "3"."""
    if isinstance(value, str):
        return NUMERIC.fullmatch(value) is not None and not value.strip().lstrip("+-").isdigit()
    return isinstance(value, float)


def are_real(values: Sequence[object]) -> bool:
    """Whether all are numbers, and some written as real ones."""
    return all(map(is_numeric, values)) and any(map(is_real, values))


def are_amounts(values: Sequence[object]) -> bool:
    """Whether all are whole numbers that lie as prices or years do: many, far apart, each in few rows.

    Numbers of classes lie close together, and numbers of rows go up by one.
    """
    if not values or not all(map(is_numeric, values)):
        return False
    numbers = [float(str(value)) for value in values]
    known = set(numbers)
    many = len(known) > FEW and len(known) * ROWS_A_CLASS > len(numbers)
    return many and 2 * len(known) < max(known) - min(known) + 1
