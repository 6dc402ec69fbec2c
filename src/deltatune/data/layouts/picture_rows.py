"""Rows of text to image: a picture's file and its caption."""

from __future__ import annotations

from collections.abc import Sequence

from deltatune.data.columns.column_values import has_text
from deltatune.data.dataset import Row
from deltatune.data.layouts.layout import FILL_IN, ConvertedRows, Layout, RowProblems, each_split


def convert_rows(rows: Sequence[Row], split: str, text: Sequence[str], label: str | None) -> ConvertedRows:
    """Captions that are strings with text in them; with `label`, rows that name a picture too."""
    (column,) = text
    problems, converted = RowProblems(split), []
    for number, row in enumerate(rows, start=1):
        missing = [name for name in (column, *([label] if label else [])) if not has_text(row.get(name))]
        for name in missing:
            problems.add(number, f"column {name!r} has no text", FILL_IN)
        if not missing:
            converted.append(dict(row))
    return ConvertedRows(converted, problems.sentences())


LAYOUT = Layout(each_split(convert_rows, "image"), convert_rows, min_rows=1)
