"""What reading a kind of data gives for the rows of one split."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from deltatune.data.formats.files import Row


@dataclass(frozen=True)
class Shaped:
    """Rows whose text and label columns have the shape of their kind, and what was wrong with the others."""

    rows: list[Row]
    """The rows that can be used."""
    problems: list[str] = field(default_factory=list)
    """Why the others cannot, one sentence for each fault."""
    notes: list[str] = field(default_factory=list)
    """What was decided on the way."""


def with_parsed(rows: Sequence[Row], columns: Sequence[str]) -> list[Row]:
    """The rows with JSON lists and objects in place of strings, in columns where every cell is one, as CSV has them."""
    parsed = {column: cells for column in columns if (cells := _all_parsed([row.get(column) for row in rows]))}
    if not parsed:
        return list(rows)
    return [{**row, **{column: cells[i] for column, cells in parsed.items()}} for i, row in enumerate(rows)]


def _all_parsed(cells: list[Any]) -> list[Any] | None:
    """Every cell parsed, or None where one is no string or not JSON of a list or an object."""
    found = []
    for cell in cells:
        if not isinstance(cell, str) or cell.strip()[:1] not in ("[", "{"):
            return None
        try:
            value = json.loads(cell)
        except (json.JSONDecodeError, RecursionError):
            return None
        found.append(value)
    return found


def is_strings(value: object) -> bool:
    """Whether a value is a list of strings."""
    return isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)


def blank(value: object) -> bool:
    """Whether a value is no string, or one without anything to read."""
    return not isinstance(value, str) or not value.strip()
