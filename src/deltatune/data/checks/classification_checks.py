"""Checks of classes, sets of classes and numbers."""

from __future__ import annotations

import re
from collections import Counter

from deltatune.data.checks.common_checks import FEWEST_ROWS, short_splits, too_few
from deltatune.data.checks.missing_values import gaps
from deltatune.data.formats.files import Row, some
from deltatune.data.layouts.row_problems import count
from deltatune.data.splits import Data, texts

IMBALANCE = 2.0  # largest class over smallest
LEAK = 0.2  # of the training rows


def problems(data: Data) -> list[str]:
    """What makes training or scoring impossible."""
    found = [problem for split, rows in data.splits().items() for problem in gaps(rows, split, data.text, data.label)]
    return found + too_few(data) + _one_answer(data) + _unseen(data)


def remarks(data: Data) -> list[str]:
    """What makes a score mean less than it seems."""
    found = _contradictions(data) + short_splits(data)
    if data.kind == "number":
        return found
    return found + (_imbalance(data) if data.kind == "classes" else []) + _leak(data)


def names_in(row: Row, data: Data) -> tuple[str, ...]:
    """The classes of a row: one, or any number of them."""
    value = row.get(data.label)
    return tuple(sorted(value)) if isinstance(value, list) else (value,)  # type: ignore[return-value]


def _one_answer(data: Data) -> list[str]:
    values = {names_in(row, data) for row in data.train}
    if len(values) != 1 or len(data.train) < FEWEST_ROWS:
        return []
    things = {"classes": "one class only", "number": "one value only", "many": "the same classes in every row"}
    (only,) = values
    shown = list(only) if data.kind == "many" else only[0]
    return [
        f"train: column {data.label!r} has {things[data.kind]}, {shown!r}: nothing can be learned. "
        "Is it the right column?"
    ]


def _unseen(data: Data) -> list[str]:
    """Labels that no training row has: no method can give them."""
    if data.kind == "number":
        return []
    seen = {name for row in data.train for name in names_in(row, data)}
    found = []
    for split in ("validation", "test"):
        counts = Counter(
            str(name) for row in data.splits()[split] for name in names_in(row, data) if name not in seen and name
        )
        if counts:
            listed = some([f"{label!r} ({count(rows, 'row')})" for label, rows in counts.most_common()])
            known = some([repr(label) for label in sorted(map(str, seen))])
            found.append(
                f"{split} has labels that train does not have: {listed}. Labels of train: {known}. "
                "Rename or remove them, or give train rows with them."
            )
    return found


def _contradictions(data: Data) -> list[str]:
    """Equal training texts with different labels."""
    first: dict[tuple[str, ...], object] = {}
    again = sum(
        first.setdefault(texts(row, data.text), names_in(row, data)) != names_in(row, data) for row in data.train
    )
    return [f"{again} of {len(data.train)} train rows repeat an earlier text with another label."] if again else []


def _imbalance(data: Data) -> list[str]:
    """What always giving the largest class would score."""
    counts = Counter(str(row[data.label]) for row in data.train).most_common()
    if len(counts) < 2 or counts[0][1] < IMBALANCE * counts[-1][1]:
        return []
    (most, largest), (least, smallest) = counts[0], counts[-1]
    rate = sum(row[data.label] == most for row in data.test) / max(1, len(data.test))
    return [
        f"classes differ in size: {most!r} has {count(largest, 'train row')}, {least!r} has {smallest}. "
        f"Always answering {most!r} is right on {rate:.1%} of test."
    ]


def _leak(data: Data) -> list[str]:
    """Rows whose own label stands in their text as a word, for labels of three letters or more."""
    words = {label: re.compile(rf"\b{re.escape(label)}\b", re.IGNORECASE) for label in data.labels if len(label) > 2}
    leaking = sum(
        any(words[name].search(text) for name in names_in(row, data) if name in words for text in texts(row, data.text))
        for row in data.train
    )
    rate = leaking / max(1, len(data.train))
    return (
        [f"the label itself stands in the text of {rate:.0%} of the train rows: does it leak?"] if rate > LEAK else []
    )
