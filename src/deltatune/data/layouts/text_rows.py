"""Plain text to learn a language from: one document a row."""

from __future__ import annotations

from collections.abc import Sequence

from deltatune.data.formats.files import Row
from deltatune.data.layouts.layout import Shaped, blank
from deltatune.data.layouts.row_problems import Faults


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
