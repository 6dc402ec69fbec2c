"""Checks of texts: those to be written for an input, and those to learn a language from."""

from __future__ import annotations

from statistics import median

from deltatune.data.formats.files import Row
from deltatune.data.layouts.row_problems import count, in_rows
from deltatune.data.splits import Data, texts

EXTRACTIVE = 0.05  # of the rows
LONG, TIMES = 20_000, 10  # characters, and times the median
TINY = 50_000  # characters


def problems(data: Data) -> list[str]:
    """One answer to everything."""
    answers = {output(row, data) for row in data.train} if data.kind == "text" else set()
    if len(answers) != 1 or len(data.train) < 2:
        return []
    (only,) = answers
    return [f"train: every row has the output {only[:60]!r}: nothing can be learned. Is it the right column?"]


def remarks(data: Data) -> list[str]:
    """Empty outputs, outputs that are copied, rows far longer than the others."""
    found = []
    for split, rows in data.splits().items():
        found += _copies(data, split, rows) if data.kind == "text" else []
        lengths = [sum(map(len, (*texts(row, data.text), output(row, data)))) for row in rows]
        middle = median(lengths) if lengths else 0
        longest = max(lengths, default=0)
        if longest > LONG and longest > TIMES * middle and len(rows) > 1:
            found.append(
                f"{split}: the longest row has {longest:,} characters, the median {middle:,.0f}: "
                f"it is row {lengths.index(longest) + 1}."
            )
    size = sum(len(row[data.text[0]]) for row in data.train) if data.kind == "raw" else TINY
    if size < TINY:
        found.append(f"train has {count(size, 'character')} in all: little to learn a language from.")
    return found


def output(row: Row, data: Data) -> str:
    """The text to be written; of a chat the last message; of raw text nothing."""
    if data.kind == "raw":
        return ""
    value = row[data.label]
    return str(value if isinstance(value, str) else value[-1]["content"])


def _copies(data: Data, split: str, rows: list[Row]) -> list[str]:
    empty, equal, inside = [], [], []
    for number, row in enumerate(rows, start=1):
        written, given = output(row, data).strip(), [text.strip() for text in texts(row, data.text)]
        if not written:
            empty.append(number)
        elif written in given:
            equal.append(number)
        elif any(written in text for text in given):
            inside.append(number)
    found = [f"{split}: the output is empty in {in_rows(empty)}."] if empty else []
    if equal:
        found.append(f"{split}: the output equals the input in {in_rows(equal)}.")
    if len(inside) > EXTRACTIVE * len(rows):
        share = f"{len(inside) / len(rows):.0%}"
        found.append(
            f"{split}: the output stands in the input word for word in {share} of the rows, {in_rows(inside)}."
        )
    return found
