"""Data in figures: rows, lengths of texts, distribution of labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from deltatune.data.dataset import Data, Row, as_text

Figures = dict[str, Any]


def describe(data: Data) -> Figures:
    """What was read, and for each split the rows, the lengths of the texts and the labels, as plain data."""
    return {
        "name": data.name,
        "origin": data.origin,
        "task": data.task,
        "kind": data.kind,
        "text": list(data.text),
        "label": data.label,
        "notes": list(data.notes),
        "splits": {split: _split_figures(rows, data) for split, rows in data.splits().items()},
    }


def _split_figures(rows: list[Row], data: Data) -> Figures:
    lengths = {column: _lengths(texts) for column, texts in _texts(rows, data).items()}
    figures: Figures = {"rows": len(rows), "lengths": lengths}
    if data.kind == "number":
        values = [row[data.label] for row in rows]
        figures["values"] = {"least": min(values), "median": median(values), "largest": max(values)} if values else {}
    elif data.kind in ("classes", "many", "tags"):
        counts = Counter(name for row in rows for name in _names(row[data.label]))
        figures["labels"] = dict(counts.most_common())
    elif data.kind == "span":
        figures["unanswerable"] = sum(not row[data.label] for row in rows)
    elif data.kind == "text":
        figures["references"] = sum(len(row["references"]) for row in rows) / len(rows) if rows else 0.0
    return figures


def _names(label: Any) -> Iterable[str]:
    return label if isinstance(label, list) else [label]


def _texts(rows: list[Row], data: Data) -> dict[str, list[str]]:
    """Column -> its texts: the inputs, and the outputs or answers."""
    texts = {column: [as_text(row[column]) for row in rows] for column in data.text}
    if data.kind == "span":
        texts[data.label] = [answer["text"] for row in rows for answer in row[data.label]]
    elif data.kind == "text":
        chat = data.label in data.text
        texts["answer" if chat else data.label] = [row["references"][0] if chat else row[data.label] for row in rows]
    return texts


def _lengths(texts: Sequence[str]) -> Figures:
    """Median and longest, in words (separated by white space) and in characters."""
    units = {"words": [len(text.split()) for text in texts], "characters": [len(text) for text in texts]}
    return {
        unit: {"median": median(lengths), "longest": max(lengths)} if lengths else {"median": 0, "longest": 0}
        for unit, lengths in units.items()
    }
