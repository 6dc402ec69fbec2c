"""Rows of language modelling: one document each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

from deltatune.data.columns.choose_columns import Columns
from deltatune.data.columns.column_values import has_text
from deltatune.data.dataset import Data, Row, Splits
from deltatune.data.layouts.layout import FILL_IN, ConvertedRows, Layout, RowProblems, count, each_split
from deltatune.data.splits import complete_documents

LONG, TIMES_MEDIAN = 20_000, 10
"""Characters, and times the median, above which the longest row is remarked."""
SMALL_CORPUS = 50_000
"""Characters of all training rows, below which it is remarked."""


def convert_rows(rows: Sequence[Row], split: str, text: Sequence[str], label: str | None) -> ConvertedRows:
    """Documents that are strings with text in them."""
    (column,) = text
    problems, converted = RowProblems(split), []
    for number, row in enumerate(rows, start=1):
        if has_text(row.get(column)):
            converted.append(dict(row))
        else:
            problems.add(number, f"column {column!r} has no text", FILL_IN)
    return ConvertedRows(converted, problems.sentences())


def by_document(splits: Splits, columns: Columns) -> tuple[Splits, list[str]]:
    """All three splits, the missing ones made of whole documents or of their ends."""
    return complete_documents(splits, columns.text[0])


# --- checks ---


def remarks(data: Data) -> list[str]:
    """Documents far longer than the others, and a small corpus."""
    (column,) = data.text
    size = sum(len(row[column]) for row in data.train)
    small = f"train has {count(size, 'character')} in all: little to learn a language from."
    return long_rows(data, lambda row: len(row[column])) + ([small] if size < SMALL_CORPUS else [])


def long_rows(data: Data, length: Callable[[Row], int]) -> list[str]:
    """The longest row of each split, where it is far longer than the others. `length` counts characters."""
    sentences = []
    for split, rows in data.splits().items():
        lengths = [length(row) for row in rows]
        longest = max(lengths, default=0)
        if len(rows) > 1 and longest > LONG and longest > TIMES_MEDIAN * median(lengths):
            sentences.append(
                f"{split}: the longest row has {longest:,} characters, the median {median(lengths):,.0f}: "
                f"it is row {lengths.index(longest) + 1}."
            )
    return sentences


LAYOUT = Layout(each_split(convert_rows, "raw"), convert_rows, complete=by_document, remarks=remarks, min_rows=1)
