"""Tables and triples as text: what is to be described, in one line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def table_line(pairs: Mapping[str, Any] | Sequence[Sequence[Any]]) -> str:
    """`key: value | key: value` of an object or a list of [key, value]."""
    items = pairs.items() if isinstance(pairs, Mapping) else [(key, value) for key, value in pairs]
    return " | ".join(f"{key}: {_cell(value)}" for key, value in items)


def triples_line(triples: Sequence[Sequence[Any]]) -> str:
    """`subject | relation | object && subject | relation | object` of a list of [subject, relation, object]."""
    return " && ".join(" | ".join(_cell(part) for part in triple) for triple in triples)


def as_line(value: Any) -> str | None:
    """A string as it is, a table or a list of triples in one line; None for anything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return table_line(value) if all(_is_cell(cell) for cell in value.values()) else None
    if not isinstance(value, (list, tuple)) or not value:
        return None
    if all(_has_cells(item, 2) for item in value):
        return table_line(value)
    return triples_line(value) if all(_has_cells(item, 3) for item in value) else None


def _has_cells(item: Any, length: int) -> bool:
    return isinstance(item, (list, tuple)) and len(item) == length and all(_is_cell(cell) for cell in item)


def _is_cell(value: Any) -> bool:
    """A plain value or a list of them."""
    if isinstance(value, (list, tuple)):
        return all(isinstance(item, (str, int, float)) for item in value)
    return value is None or isinstance(value, (str, int, float))


def _cell(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)
