"""Inputs and the texts to be written for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deltatune.data.columns.label_columns import Columns
from deltatune.data.formats.files import Row
from deltatune.data.layouts import conversations as chats
from deltatune.data.layouts.label_values import is_absent
from deltatune.data.layouts.layout import Shaped, is_strings, with_parsed
from deltatune.data.layouts.row_problems import Faults, short
from deltatune.data.splits import texts

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


Parts = dict[str, list[Row]]


def grouped(parts: Parts, columns: Columns) -> tuple[Parts, list[str]]:
    """Validation and test with one row an input, its references gathered; train keeps every row to learn from."""
    found, notes = dict(parts), []
    for split in ("validation", "test"):
        rows: dict[tuple[str, ...], Row] = {}
        for row in parts[split]:
            key = texts(row, columns.text)
            if key not in rows:
                rows[key] = {**row, REFERENCES: list(row[REFERENCES])}
            else:
                known = rows[key][REFERENCES]
                known += [reference for reference in row[REFERENCES] if reference not in known]
        if len(rows) < len(parts[split]):
            repeated = f"{len(parts[split])} rows repeat {len(rows)} inputs"
            notes.append(f"{split}: {repeated}: they became one row an input, with several references")
            found[split] = list(rows.values())
    return found, notes
