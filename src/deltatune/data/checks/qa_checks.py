"""Checks of questions on a context."""

from __future__ import annotations

from deltatune.data.layouts.row_problems import in_rows
from deltatune.data.splits import Data

LONG = 30  # words


def problems(data: Data) -> list[str]:
    """A training split without any answer."""
    if not data.train or any(row[data.label] for row in data.train):
        return []
    return [f"train: column {data.label!r} has no answer in any row: nothing can be learned. Is it the right column?"]


def remarks(data: Data) -> list[str]:
    """Questions without an answer, long answers, answers that stand at several places."""
    found = []
    for split, rows in data.splits().items():
        none = sum(not row[data.label] for row in rows)
        if none:
            found.append(
                f"{split}: {none} of {len(rows)} rows ({none / len(rows):.0%}) have no answer in their context."
            )
        long = [
            number
            for number, row in enumerate(rows, start=1)
            if any(len(answer["text"].split()) > LONG for answer in row[data.label])
        ]
        if long:
            found.append(f"{split}: an answer has more than {LONG} words in {in_rows(long)}.")
        several = [
            number
            for number, row in enumerate(rows, start=1)
            if any(row[data.text[-1]].count(answer["text"]) > 1 for answer in row[data.label])
        ]
        if several and split == "train":
            found.append(
                f"{split}: an answer stands at several places of its context in {in_rows(several)}; "
                "the one that is given is learned."
            )
    return found
