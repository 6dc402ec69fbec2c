"""Label values -> class names, sets of class names or numbers."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence

from deltatune.core.errors import DeltatuneError
from deltatune.data.columns.numeric_values import FEW, NUMERIC, are_amounts, are_real, is_numeric
from deltatune.data.formats.files import some
from deltatune.data.task_types import Kind

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


SEPARATORS = ("|", ";", ",")
MOST_NAMES = 1000  # more different names than that are no classes


def separator_of(values: Sequence[object]) -> str:
    """The separator of the names in strings, "[" for JSON lists, "" where each string is one name.

    A separator counts where every string that has one shares a name with a different string, else "a, b" may be one
    class; and where the names are few.
    """
    strings = [value for value in values if isinstance(value, str)]
    if not strings or len(strings) < len(values):
        return ""
    if all(_from_json(value) is not None for value in strings):
        return "["
    distinct = set(strings)
    for separator in SEPARATORS:
        several = [value for value in distinct if separator in value]
        if several:
            return separator if _are_sets(distinct, several, separator, len(strings)) else ""
    return ""


def _are_sets(distinct: set[str], several: list[str], separator: str, rows: int) -> bool:
    places = Counter(name for value in distinct for name in set(_split(value, separator)))
    few = len(places) <= min(MOST_NAMES, rows // 2)
    return few and all(any(places[name] > 1 for name in _split(value, separator)) for value in several)


def as_names(values: Sequence[object]) -> list[list[str] | None]:
    """The names of each label, each once and in their order; None where it is no set of names."""
    strings = [value for value in values if isinstance(value, str)]
    separator = next((sep for sep in SEPARATORS if any(sep in v for v in strings if _from_json(v) is None)), "")
    return [_names(value, separator) for value in values]


def _names(value: object, separator: str) -> list[str] | None:
    items = (_from_json(value) or _split(value, separator)) if isinstance(value, str) else value
    if isinstance(value, str) and _from_json(value) == []:
        items = []
    if not isinstance(items, (list, tuple)):
        return None
    if any(not isinstance(item, (str, int)) or (isinstance(item, str) and not item.strip()) for item in items):
        return None
    return list(dict.fromkeys(str(item) for item in items))


def _split(value: str, separator: str) -> list[str]:
    return [part.strip() for part in value.split(separator) if part.strip()] if separator else [value.strip()]


def _from_json(value: str) -> list[object] | None:
    if not value.lstrip().startswith("["):
        return None
    try:
        found = json.loads(value)
    except (json.JSONDecodeError, RecursionError):
        return None
    return found if isinstance(found, list) else None
