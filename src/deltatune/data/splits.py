"""Labelled rows in three splits, and how missing splits are made: by a hash of the text.

The side a row lands on depends on its text alone, so identical texts stay together, and the order of the rows, a run on
another machine or rows added later change nothing. Only where a split would stay empty is it the text's place among the
others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deltatune.data.formats.files import Row
from deltatune.data.task_types import TASK_OF, Kind, Task

SPLITS = ("train", "validation", "test")
HELD_OUT = 0.1  # of the training rows, for each split that is missing
LEAST = 2  # rows of a split


@dataclass(frozen=True)
class Data:
    """Rows to train on, to choose by and to be judged by. Rows keep every column they came with."""

    name: str
    """Short name for run folders: the file's stem, the folder's or the data set's name."""
    origin: str
    """What was read, for the record."""
    text: tuple[str, ...]
    """The text columns: one or a pair; the tokens; question and context; the inputs of generation; the documents."""
    label: str
    """The label column; "" for raw text. For chats it is the text column: the last message is the answer."""
    kind: Kind
    """What a label is: a string for classes, a float for number, a list of strings for many and tags, a list of
    {"text", "start"} for span, a string for text, whose rows also have `references`, a list of strings."""
    labels: tuple[str, ...]
    """The class names, sorted (by value where all are numbers), or the tags, O first; empty for the other kinds."""
    train: list[Row]
    """Rows to train on."""
    validation: list[Row]
    """Rows that choose the learning rate and the epoch."""
    test: list[Row]
    """Rows that are scored once, at the end."""
    notes: tuple[str, ...] = ()
    """Every guess that was made, one sentence each."""

    @property
    def task(self) -> Task:
        """What the data are for."""
        return TASK_OF[self.kind]

    def splits(self) -> dict[str, list[Row]]:
        """The three splits by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}


def texts(row: Row, columns: Sequence[str]) -> tuple[str, ...]:
    """The inputs of a row, each as one string: what makes two rows the same to a model."""
    return tuple(as_text(row[column]) for column in columns)


def as_text(value: Any) -> str:
    """A string as it is, the words of a list, the turns of a chat but for the last, which is the answer."""
    if isinstance(value, list) and value and isinstance(value[0], dict) and "content" in value[0]:
        answered = value[-1]["role"] == "assistant"
        return "\n".join(f"{turn['role']}: {turn['content']}" for turn in (value[:-1] if answered else value))
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def place(row: Row, columns: Sequence[str], salt: str = "") -> float:
    """Where a row stands in [0, 1): a uniform hash of its text and the salt."""
    key = "\x1f".join((salt, *texts(row, columns)))
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=6)  # 48 bits: exact in a float
    return int.from_bytes(digest.digest(), "big") / 2**48


def by_hash(rows: Sequence[Row], columns: Sequence[str], shares: Sequence[float]) -> list[list[Row]]:
    """Deal the rows out in about the given shares, which sum to 1; the order within a part is the order in `rows`.

    Where the rows are so few that a part would get less than LEAST of them, shares are of their order by hash.
    """
    places = [place(row, columns) for row in rows]
    parts = _dealt(rows, places, shares)
    known = {where: i for i, where in enumerate(sorted(set(places)))}
    if min(map(len, parts)) >= LEAST or len(known) < LEAST * len(shares):
        return parts
    held_out = [max(LEAST / len(known), share) for share in shares[1:]]
    ranks = [(known[where] + 0.5) / len(known) for where in places]
    return _dealt(rows, ranks, [1 - sum(held_out), *held_out])


def _dealt(rows: Sequence[Row], places: Sequence[float], shares: Sequence[float]) -> list[list[Row]]:
    bounds = [sum(shares[:end]) for end in range(1, len(shares))]
    parts: list[list[Row]] = [[] for _ in shares]
    for row, where in zip(rows, places, strict=True):
        parts[sum(where >= bound for bound in bounds)].append(row)
    return parts


def first_by_hash(rows: list[Row], columns: Sequence[str], label: str, count: int) -> list[Row]:
    """The `count` rows that come first by hash, in their order in `rows`. Salted: the plain hash made the splits."""
    order = sorted(range(len(rows)), key=lambda i: (place(rows[i], columns, "limit"), str(rows[i].get(label))))
    return [rows[i] for i in sorted(order[:count])]


def complete(parts: dict[str, list[Row]], columns: Sequence[str]) -> tuple[dict[str, list[Row]], list[str]]:
    """All three splits from the ones there are, and a sentence on what was made how."""
    train, validation, test = (parts.get(split) for split in SPLITS)
    if train is None:
        raise ValueError("complete() needs a train split")
    if validation is not None and test is not None:
        return {"train": train, "validation": validation, "test": test}, []
    if validation is None and test is None:
        dealt = by_hash(train, columns, (1 - 2 * HELD_OUT, HELD_OUT, HELD_OUT))
        note = f"no validation and no test split: {HELD_OUT:.0%} of the rows became each of them, by hash of the text"
        return dict(zip(SPLITS, dealt, strict=True)), [note]
    kept, held_out = by_hash(train, columns, (1 - HELD_OUT, HELD_OUT))
    carved = f"{HELD_OUT:.0%} of train was held out as validation, by hash of the text"
    if test is not None:
        return {"train": kept, "validation": held_out, "test": test}, [f"no validation split: {carved}"]
    note = f"no test split: the validation split is the test split, and {carved}"
    return {"train": kept, "validation": held_out, "test": validation or []}, [note]


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
