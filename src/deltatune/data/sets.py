"""Labels that are sets of class names: lists, JSON lists, or names with a separator between them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

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
