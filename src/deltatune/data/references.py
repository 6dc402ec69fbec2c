"""Rows that repeat one input: one row with several references, where answers are scored."""

from __future__ import annotations

from deltatune.data.columns import Columns
from deltatune.data.formats import Row
from deltatune.data.splits import texts
from deltatune.data.written import REFERENCES

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
