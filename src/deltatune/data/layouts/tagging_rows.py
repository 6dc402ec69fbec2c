"""Tokens and tags: one tag a word."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from deltatune.data.formats.files import Row
from deltatune.data.layouts.layout import Shaped, with_parsed
from deltatune.data.layouts.row_problems import Faults, short

OUTSIDE = "O"
"""The tag of words that belong to nothing."""

AS_ROW = 'A row is {"tokens": ["Ann", "slept"], "tags": ["B-person", "O"]}.'


def shape(rows: Sequence[Row], where: str, text: Sequence[str], label: str | None) -> Shaped:
    """Tokens and tags as lists of strings of one length; strings are split at white space. Without `label`: tokens."""
    (tokens,) = text
    columns = [tokens] if label is None else [tokens, label]
    faults, kept = Faults(where), []
    for number, row in enumerate(with_parsed(rows, columns), start=1):
        lists = {column: as_list(row.get(column)) for column in columns}
        found = _fault(row, lists)
        if found:
            faults.add(number, *found)
        else:
            kept.append({**row, **lists})
    return Shaped(kept, faults.sentences())


def as_list(value: Any) -> list[str] | None:
    """The words of a string or the items of a list as strings; None where it is neither, or holds something else."""
    if isinstance(value, str):
        return value.split()
    if not isinstance(value, (list, tuple)) or any(not isinstance(v, (str, int)) or isinstance(v, bool) for v in value):
        return None
    return [str(item) for item in value]


def _fault(row: Row, lists: dict[str, list[str] | None]) -> tuple[str, str, str] | None:
    """What is wrong with a row, the fix, and what the row has."""
    for column, items in lists.items():
        if items is None:
            what = f"column {column!r} is no list of strings"
            return what, AS_ROW, short(row.get(column))
    lengths = {column: len(items) for column, items in lists.items() if items is not None}
    tokens = next(iter(lengths))
    if not lengths[tokens]:
        return f"column {tokens!r} has no words", "Fill in or remove them.", ""
    if len(set(lengths.values())) > 1:
        pairs = " and ".join(f"{length} {column}" for column, length in lengths.items())
        return f"{' and '.join(map(repr, lengths))} differ in length", "Each token needs one tag.", pairs
    return None


def in_order(tags: Iterable[str]) -> tuple[str, ...]:
    """All tags: O first, then sorted."""
    return tuple(sorted(set(tags), key=lambda tag: (tag != OUTSIDE, tag)))
