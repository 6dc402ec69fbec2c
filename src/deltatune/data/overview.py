"""What data are, in figures: rows, lengths, labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from statistics import median
from typing import Any

from deltatune.data.formats.files import Row
from deltatune.data.splits import Data, as_text

Figures = dict[str, Any]


def describe(data: Data) -> Figures:
    """Everything as plain data: what was read, and of each split the rows, the lengths and the labels."""
    return {
        "name": data.name,
        "origin": data.origin,
        "task": data.task,
        "kind": data.kind,
        "text": list(data.text),
        "label": data.label,
        "notes": list(data.notes),
        "splits": {split: _split(rows, data) for split, rows in data.splits().items()},
    }


def _split(rows: list[Row], data: Data) -> Figures:
    found: Figures = {"rows": len(rows), "lengths": {c: _lengths(texts) for c, texts in _texts(rows, data).items()}}
    if data.kind == "number":
        values = [row[data.label] for row in rows]
        found["values"] = {"least": min(values), "median": median(values), "largest": max(values)} if values else {}
    elif data.kind in ("classes", "many", "tags"):
        counts = Counter(name for row in rows for name in _names(row[data.label]))
        found["labels"] = dict(counts.most_common())
    elif data.kind == "span":
        found["unanswerable"] = sum(not row[data.label] for row in rows)
    elif data.kind == "text":
        found["references"] = sum(len(row["references"]) for row in rows) / len(rows) if rows else 0.0
    return found


def _names(label: Any) -> Iterable[str]:
    return label if isinstance(label, list) else [label]


def _texts(rows: list[Row], data: Data) -> dict[str, list[str]]:
    """Column -> its texts: what is read, and what is to be written or found."""
    found = {column: [as_text(row[column]) for row in rows] for column in data.text}
    if data.kind == "span":
        found[data.label] = [answer["text"] for row in rows for answer in row[data.label]]
    elif data.kind == "text":
        chat = data.label in data.text
        found["answer" if chat else data.label] = [row["references"][0] if chat else row[data.label] for row in rows]
    return found


def _lengths(texts: list[str]) -> Figures:
    """Median and longest, in words (what stands between white space) and in characters."""
    units = {"words": [len(text.split()) for text in texts], "characters": [len(text) for text in texts]}
    return {
        unit: {"median": median(lengths), "longest": max(lengths)} if lengths else {"median": 0, "longest": 0}
        for unit, lengths in units.items()
    }
