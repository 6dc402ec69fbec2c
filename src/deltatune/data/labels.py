"""Label values -> class names, sets of class names or numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from deltatune.core.errors import DeltatuneError
from deltatune.data.formats import some
from deltatune.data.kinds import Kind
from deltatune.data.quantities import FEW, NUMERIC, are_amounts, are_real, is_numeric
from deltatune.data.sets import as_names, separator_of

SCORE_NAMES = {"score", "similarity"}
"""Columns that hold a quantity even where its values happen to be whole."""


def is_absent(value: object) -> bool:
    """Whether there is no label: None, NaN or a blank string."""
    return (
        value is None
        or (isinstance(value, float) and math.isnan(value))
        or (isinstance(value, str) and not value.strip())
    )


def kind_of(values: Sequence[object], column: str, forced: Kind | None = None) -> tuple[Kind, str | None]:
    """Whether labels are classes, sets of them or numbers, and a sentence where that is a guess one could get wrong.

    Lists of strings are sets of classes, as are strings with a separator whose parts occur in several of them. Other
    strings that are no numbers, and bools, are classes. Real numbers are numbers, unless they are few and whole; whole
    ones are classes, unless they lie as amounts do.
    """
    if forced is not None:
        return forced, None
    if values and all(isinstance(value, (list, tuple)) for value in values):
        return "many", None
    separator = separator_of(values)
    if separator:
        how = "JSON lists" if separator == "[" else f"class names with {separator!r} between them"
        return "many", f"the label {column!r} holds {how}: a row may have several classes"
    if not all(map(is_numeric, values)) or not (are_real(values) or are_amounts(values)):
        return "classes", None
    numbers = {float(str(value)) for value in values}
    whole = all(number.is_integer() for number in numbers)
    if whole and column.strip().lower() not in SCORE_NAMES and len(numbers) <= FEW:
        return "classes", f"the label {column!r} has {len(numbers)} whole values: they are classes, not numbers"
    low, high = min(numbers), max(numbers)
    what = "real numbers" if are_real(values) else f"{len(numbers)} different numbers"
    return "number", f"the label {column!r} holds {what} from {low:.6g} to {high:.6g}: this is regression"


def as_class(value: object) -> str:
    """The name of a class: strings as they are, 1.0 and 1 alike "1"."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def as_number(value: object) -> float:
    """The label as a number; ValueError where it is none or not finite."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)) or not math.isfinite(float(value)):
        raise ValueError(f"{value!r} is not a finite number")
    return float(value)


def convert(values: Sequence[object], column: str, kind: Kind) -> list[str] | list[float] | list[list[str]]:
    """All labels as class names, sets of them or numbers. Raises DeltatuneError naming the first that are neither."""
    if kind == "many":
        found = as_names(values)
        _refuse([v for v, names in zip(values, found, strict=True) if names is None], column, AS_SET)
        return [names for names in found if names is not None]
    if kind == "number":
        _refuse([value for value in values if not _converts(value)], column, AS_NUMBER)
        return [as_number(value) for value in values]
    _refuse([value for value in values if not isinstance(value, (str, int, float))], column, AS_CLASS)
    return [as_class(value) for value in values]


AS_SET = 'Several classes are a list of strings, or names with "|" between them.'
AS_NUMBER = "Numbers are needed for regression; without them leave the kind out or say classes."
AS_CLASS = "A label must be a string, a whole number, a float or a bool."


def _refuse(wrong: Sequence[object], column: str, fix: str) -> None:
    if wrong:
        distinct = list(dict.fromkeys(repr(value)[:60] for value in wrong))
        raise DeltatuneError(f"the label column {column!r} has values that cannot be used: {some(distinct)}. {fix}")


def in_order(names: set[str]) -> tuple[str, ...]:
    """Class names sorted: by value where all are numbers ("2" before "10"), else by character."""
    if all(NUMERIC.fullmatch(name) for name in names):
        return tuple(sorted(names, key=lambda name: (float(name), name)))
    return tuple(sorted(names))


def _converts(value: object) -> bool:
    try:
        as_number(value)
    except ValueError:
        return False
    return True
