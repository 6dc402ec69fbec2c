"""Plain text to learn a language from: one document a row."""

from __future__ import annotations

from collections.abc import Sequence

from deltatune.data.faults import Faults
from deltatune.data.formats import Row
from deltatune.data.shaped import Shaped, blank


def shape(rows: Sequence[Row], where: str, text: Sequence[str], label: str | None) -> Shaped:
    """Documents that are strings with something in them."""
    (column,) = text
    faults, kept = Faults(where), []
    for number, row in enumerate(rows, start=1):
        if blank(row.get(column)):
            faults.add(number, f"column {column!r} has no text", "Fill in or remove them.")
        else:
            kept.append(dict(row))
    return Shaped(kept, faults.sentences())
