"""What is wrong with the data (`problems`: nothing can be trained) and what one should know (`remarks`)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from deltatune.data.formats import Row, some
from deltatune.data.labels import is_absent
from deltatune.data.splits import Data, texts

FEWEST_ROWS = 2  # in each split
SHORT = 100  # rows; below it one row is more than a point
IMBALANCE = 2.0  # largest class over smallest
LEAK = 0.2  # of the training rows


def gaps(rows: Sequence[Row], where: str, text: Sequence[str], label: str) -> list[str]:
    """Texts and labels that are not there, with row numbers counted from 1 within `rows`."""
    problems = []
    for column in text:
        empty = [i for i, row in enumerate(rows, start=1) if not has_text(row, column)]
        if empty:
            problems.append(f"{where}: column {column!r} has no text in {_rows(empty)}. Fill in or remove them.")
    unlabelled = [i for i, row in enumerate(rows, start=1) if is_absent(row.get(label))]
    if unlabelled:
        problems.append(f"{where}: column {label!r} has no label in {_rows(unlabelled)}. Fill in or remove them.")
    return problems


def has_text(row: Row, column: str) -> bool:
    """Whether the column holds a string that is more than white space."""
    value = row.get(column)
    return isinstance(value, str) and bool(value.strip())


def problems(data: Data) -> list[str]:
    """Everything that makes training or scoring on `data` impossible or meaningless, one sentence each."""
    found = [problem for split, rows in data.splits().items() for problem in gaps(rows, split, data.text, data.label)]
    return found + _too_few(data) + _one_answer(data) + _unseen(data)


def remarks(data: Data) -> list[str]:
    """What makes a score on `data` mean less than it seems, one sentence each."""
    found = _repeated(data) + _contradictions(data) + _short(data)
    return found + _imbalance(data) + _leak(data) if data.kind == "classes" else found


def _too_few(data: Data) -> list[str]:
    return [
        f"{split} has {_count(len(rows), 'row')}; at least {FEWEST_ROWS} are needed. Give more rows or a {split} file."
        for split, rows in data.splits().items()
        if len(rows) < FEWEST_ROWS
    ]


def _one_answer(data: Data) -> list[str]:
    values = {row.get(data.label) for row in data.train}
    if len(values) != 1 or len(data.train) < FEWEST_ROWS:
        return []
    thing = "one class only" if data.kind == "classes" else "one value only"
    return [
        f"train: column {data.label!r} has {thing}, {values.pop()!r}: nothing can be learned. Is it the right column?"
    ]


def _unseen(data: Data) -> list[str]:
    """Labels that no training row has: no method can give them."""
    if data.kind == "number":
        return []
    seen = {row.get(data.label) for row in data.train}
    found = []
    for split in ("validation", "test"):
        counts = Counter(str(row[data.label]) for row in data.splits()[split] if row.get(data.label) not in seen)
        if counts:
            listed = some([f"{label!r} ({_count(count, 'row')})" for label, count in counts.most_common()])
            known = some([repr(label) for label in sorted(map(str, seen))])
            found.append(
                f"{split} has labels that train does not have: {listed}. Labels of train: {known}. "
                "Rename or remove them, or give train rows with them."
            )
    return found


def _repeated(data: Data) -> list[str]:
    """Texts of one split that occur in another."""
    sets = {split: {texts(row, data.text) for row in rows} for split, rows in data.splits().items()}
    found = []
    for split, other in (("validation", "train"), ("test", "train"), ("test", "validation")):
        count = sum(texts(row, data.text) in sets[other] for row in data.splits()[split])
        if count:
            total = len(data.splits()[split])
            found.append(f"{count} of {total} {split} rows also occur in {other}: scores on them show memory.")
    return found


def _contradictions(data: Data) -> list[str]:
    """Equal training texts with different labels."""
    first: dict[tuple[str, ...], object] = {}
    count = sum(first.setdefault(texts(row, data.text), row[data.label]) != row[data.label] for row in data.train)
    return [f"{count} of {len(data.train)} train rows repeat an earlier text with another label."] if count else []


def _short(data: Data) -> list[str]:
    """Splits so short that one row moves the score by more than a point."""
    return [
        f"{split} has {len(rows)} rows: one row is {100 / len(rows):.1f} points, so small differences are chance."
        for split, rows in (("validation", data.validation), ("test", data.test))
        if 0 < len(rows) < SHORT
    ]


def _imbalance(data: Data) -> list[str]:
    """What always giving the largest class would score."""
    counts = Counter(str(row[data.label]) for row in data.train).most_common()
    if len(counts) < 2 or counts[0][1] < IMBALANCE * counts[-1][1]:
        return []
    (most, largest), (least, smallest) = counts[0], counts[-1]
    rate = sum(row[data.label] == most for row in data.test) / max(1, len(data.test))
    return [
        f"classes differ in size: {most!r} has {_count(largest, 'train row')}, {least!r} has {smallest}. "
        f"Always answering {most!r} is right on {rate:.1%} of test."
    ]


def _leak(data: Data) -> list[str]:
    """Rows whose own label stands in their text as a word, for labels of three letters or more."""
    words = {label: re.compile(rf"\b{re.escape(label)}\b", re.IGNORECASE) for label in data.labels if len(label) > 2}
    count = sum(
        any(words[row[data.label]].search(text) for text in texts(row, data.text))
        for row in data.train
        if row[data.label] in words
    )
    rate = count / max(1, len(data.train))
    return (
        [f"the label itself stands in the text of {rate:.0%} of the train rows: does it leak?"] if rate > LEAK else []
    )


def _rows(numbers: list[int]) -> str:
    """ "1 row (7)" or "12 rows (3, 4, 9, 10, 17, and 7 more)"."""
    return f"{_count(len(numbers), 'row')} ({some([str(number) for number in numbers])})"


def _count(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"
