"""Few documents: their ends are held out, since there are not enough of them to hold out whole ones."""

from __future__ import annotations

from collections.abc import Sequence

from deltatune.data.formats import Row
from deltatune.data.splits import HELD_OUT, complete

FEW = 20  # documents

Parts = dict[str, list[Row]]


def complete_documents(parts: Parts, column: str) -> tuple[Parts, list[str]]:
    """All three splits from the ones there are, and a sentence on what was made how.

    Whole documents by hash; of few documents the ends, each cut where a line ends.
    """
    found, notes = complete(parts, (column,))
    if len(parts["train"]) >= FEW and all(found.values()):
        return found, notes
    if "validation" in parts and "test" in parts:
        return found, notes
    both = "validation" not in parts and "test" not in parts
    shares = (1 - 2 * HELD_OUT, HELD_OUT, HELD_OUT) if both else (1 - HELD_OUT, HELD_OUT)
    cut = [_cut(row, column, shares) for row in parts["train"]]
    pieces = [[row[i] for row in cut if row[i][column].strip()] for i in range(len(shares))]
    documents = "each document" if len(parts["train"]) > 1 else "the document"
    last = f"the last {HELD_OUT:.0%} of {documents}"
    if both:
        note = f"no validation and no test split: {last} became test, the {HELD_OUT:.0%} before it validation"
        return {"train": pieces[0], "validation": pieces[1], "test": pieces[2]}, [note]
    if "test" in parts:
        return {**parts, "train": pieces[0], "validation": pieces[1]}, [
            f"no validation split: {last} became validation"
        ]
    note = f"no test split: the validation split is the test split, and {last} of train became validation"
    return {"train": pieces[0], "validation": pieces[1], "test": parts["validation"]}, [note]


def _cut(row: Row, column: str, shares: Sequence[float]) -> list[Row]:
    """The document in pieces of about these shares, in its order."""
    text = row[column]
    ends = [_end(text, round(len(text) * sum(shares[: i + 1]))) for i in range(len(shares) - 1)]
    bounds = [0, *ends, len(text)]
    return [{**row, column: text[bounds[i] : bounds[i + 1]]} for i in range(len(shares))]


def _end(text: str, near: int) -> int:
    """Where the line that this place is in begins, or the word where the line is long, or the place itself."""
    for mark, reach in (("\n", 2000), (" ", 100)):
        found = text.rfind(mark, max(0, near - reach), near)
        if found >= 0:
            return found + 1
    return near
