"""Inputs and the texts to be written for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deltatune.data import chats
from deltatune.data.faults import Faults, short
from deltatune.data.formats import Row
from deltatune.data.labels import is_absent
from deltatune.data.shaped import Shaped, is_strings, with_parsed
from deltatune.data.tables import as_line

REFERENCES = "references"
"""The column with every text that counts as right."""
OUTPUT = "output"
"""The column with the first of them, where a file has only references."""


def shape(rows: Sequence[Row], where: str, text: Sequence[str], label: str | None) -> Shaped:
    """Inputs as strings, tables and triples in one line; outputs as strings, and `references` a list of them.

    Without `label` the inputs alone. One of the inputs must have text; an output may be empty in validation and test.
    """
    if list(text) == [chats.MESSAGES]:
        return chats.shape(rows, where, chats.MESSAGES, label is not None)
    faults, kept = Faults(where), []
    outputs = [label, REFERENCES] if label else []
    for number, row in enumerate(with_parsed(rows, [*text, *outputs]), start=1):
        inputs = {column: _line(row.get(column)) for column in text}
        wrong = [column for column, line in inputs.items() if line is None]
        for column in wrong:
            what = f"column {column!r} is no text, table or list of triples"
            faults.add(number, what, "A table is an object or a list of [key, value].", short(row.get(column)))
        if not wrong and not any(line.strip() for line in inputs.values() if line):
            faults.add(number, f"{' and '.join(map(repr, text))} {_have(text)} no text", "Fill in or remove them.")
            wrong = list(text)
        found = _outputs(row, label, where, number, faults) if label else {}
        if not wrong and found is not None:
            kept.append({**row, **inputs, **found})
    return Shaped(kept, faults.sentences())


def _have(columns: Sequence[str]) -> str:
    return "has" if len(columns) == 1 else "have"


def _line(value: Any) -> str | None:
    """An input in one line; nothing at all is empty."""
    return "" if is_absent(value) else as_line(_spelt(value))


def _spelt(value: Any) -> Any:
    """A number as a string."""
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _outputs(row: Row, label: str, where: str, number: int, faults: Faults) -> dict[str, Any] | None:
    """The output and its references, or None where there is none and one is needed."""
    value = row.get(label)
    more = row.get(REFERENCES) if label != REFERENCES else None
    if more is not None and not is_strings(more):
        what = f"column {REFERENCES!r} is no list of strings"
        faults.add(number, what, 'It holds texts that count as right: ["...", "..."]. Or rename it.', short(more))
        return None
    if value is None and more:
        value = more[0]
    if is_strings(value) and value:
        value, more = value[0], [*value, *(more or [])]
    value = _spelt(value)
    if not isinstance(value, str):
        faults.add(number, f"column {label!r} is no text", "Fill in or remove them.", short(value))
        return None
    if not value.strip() and where == "train":
        faults.add(number, f"column {label!r} has no text", "Fill in or remove them: an empty answer would be learned.")
        return None
    return {OUTPUT if label == REFERENCES else label: value, REFERENCES: list(more) if more else [value]}
