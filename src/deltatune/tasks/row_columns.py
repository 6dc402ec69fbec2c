"""Columns of the user's rows, and errors that list the rows which do not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deltatune.core.errors import DeltatuneError, nearest

LISTED = 5
"""How many bad rows an error lists before it counts the rest."""


def raise_listed(problems: list[str], after: str = "") -> None:
    """Raise one error with the first few problems, the number of the others, and a closing line."""
    if problems:
        more = [f"... and {len(problems) - LISTED} more"] if len(problems) > LISTED else []
        raise DeltatuneError("\n".join([*problems[:LISTED], *more, *([after] if after else [])]))


def column(rows: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    """The values of a column. Raises DeltatuneError naming the first row without it and the columns that row has."""
    for i, row in enumerate(rows):
        if name not in row:
            columns = ", ".join(map(repr, row))
            raise DeltatuneError(f"no column {name!r} in row {i}{nearest(name, row)}; columns: {columns}")
    return [row[name] for row in rows]


def text_column(rows: Sequence[Mapping[str, Any]], name: str) -> list[str]:
    """The values of a column of texts. Raises DeltatuneError listing the rows that hold something else."""
    values = column(rows, name)
    raise_listed(
        [f"row {i}: {name} is {value!r}, not a text" for i, value in enumerate(values) if not isinstance(value, str)]
    )
    return values
