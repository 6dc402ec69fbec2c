"""Texts and labels that are not there."""

from __future__ import annotations

from collections.abc import Sequence

from deltatune.data.formats.files import Row
from deltatune.data.layouts.label_values import is_absent
from deltatune.data.layouts.row_problems import in_rows


def gaps(rows: Sequence[Row], where: str, text: Sequence[str], label: str) -> list[str]:
    """Texts and labels that are not there, with row numbers counted from 1 within `rows`."""
    problems = []
    for column in text:
        empty = [i for i, row in enumerate(rows, start=1) if not has_text(row, column)]
        if empty:
            problems.append(f"{where}: column {column!r} has no text in {in_rows(empty)}. Fill in or remove them.")
    unlabelled = [i for i, row in enumerate(rows, start=1) if is_absent(row.get(label))]
    if unlabelled:
        problems.append(f"{where}: column {label!r} has no label in {in_rows(unlabelled)}. Fill in or remove them.")
    return problems


def has_text(row: Row, column: str) -> bool:
    """Whether the column holds a string that is more than white space."""
    value = row.get(column)
    return isinstance(value, str) and bool(value.strip())
