"""Checks of tokens and tags."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from deltatune.data.formats.files import some
from deltatune.data.layouts.row_problems import Faults, count, in_rows, short
from deltatune.data.splits import Data

BEGIN, INSIDE = "B-", ("I-", "E-")


def problems(data: Data) -> list[str]:
    """A training split with one tag alone."""
    seen = {tag for row in data.train for tag in row[data.label]}
    if len(seen) != 1:
        return []
    (only,) = seen
    return [f"train: every word has the tag {only!r}: nothing can be learned. Is it the right column?"]


def remarks(data: Data) -> list[str]:
    """Unseen tags, entities that do not begin, words that are white space."""
    found = _unseen(data)
    for split, rows in data.splits().items():
        faults = Faults(split)
        for number, row in enumerate(rows, start=1):
            bare = _without_begin(row[data.label])
            if bare and any(tag.startswith(BEGIN) for tag in data.labels):
                faults.add(
                    number, "an entity begins with I-, none with B- before it,", "It is scored as if it began.", bare
                )
            blank = [word for word in row[data.text[0]] if not word.strip()]
            if blank:
                faults.add(
                    number, "there are words of white space alone", "A model sees nothing there.", short(blank[0])
                )
        found += faults.sentences()
    entities = [tag for tag in data.labels if tag.startswith(INSIDE)]
    if entities and not any(tag.startswith(BEGIN) for tag in data.labels):
        found.append("no tag begins with B-: two entities of one type side by side count as one.")
    return found


def _unseen(data: Data) -> list[str]:
    """Tags that no training row has: no method can give them."""
    seen = {tag for row in data.train for tag in row[data.label]}
    found = []
    for split in ("validation", "test"):
        rows = data.splits()[split]
        counts = Counter(tag for row in rows for tag in row[data.label] if tag not in seen)
        if counts:
            where = [number for number, row in enumerate(rows, start=1) if not seen.issuperset(row[data.label])]
            listed = some([f"{tag!r} ({count(words, 'word')})" for tag, words in counts.most_common()])
            found.append(
                f"{split} has tags that train does not have, so that no model can give them: {listed}; "
                f"in {in_rows(where)}."
            )
    return found


def _without_begin(tags: list[str]) -> str:
    """The first place where an entity goes on that did not begin, else ""."""
    for before, tag in pairwise(["O", *tags]):
        if tag.startswith(INSIDE) and before[2:] != tag[2:]:
            return f"{tag} after {before}"
        if tag.startswith(INSIDE) and not before.startswith((BEGIN, "I-")):
            return f"{tag} after {before}"
    return ""
