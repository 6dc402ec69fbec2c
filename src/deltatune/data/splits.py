"""Missing validation and test splits, made from the training rows by a hash of their texts.

The split of a row depends on its text alone. Equal texts land in the same split, and neither the order of the rows, nor
another machine, nor rows added later move a row. Only where a split would stay empty is the rank of the hash used.
"""

from __future__ import annotations

import hashlib
import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence

from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.data.dataset import SPLITS, LabelKind, Row, Splits, texts
from deltatune.data.media.media_files import MediaFile

HELD_OUT = 0.1
"""Share of the training rows that becomes each missing split."""
MIN_ROWS = 2
"""Rows of a split."""
FEW_DOCUMENTS = 20
"""Below it a corpus is split inside its documents."""

LINE_REACH, WORD_REACH = 2000, 100
"""Characters that the end of a piece may move back to a line break, or to a blank."""


def hash_position(row: Row, columns: Sequence[str], salt: str = "") -> float:
    """A uniform hash of the row's texts and the salt, in [0, 1)."""
    key = "\x1f".join((salt, *texts(row, columns)))
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=6)  # 48 bits: exact in a float
    return int.from_bytes(digest.digest(), "big") / 2**48


def by_hash(rows: Sequence[Row], columns: Sequence[str], shares: Sequence[float]) -> list[list[Row]]:
    """Partition the rows into about the given shares, which sum to 1; each part keeps the order of `rows`.

    Where a part would get fewer than MIN_ROWS, the rank of the hash decides instead of the hash.
    """
    positions = [hash_position(row, columns) for row in rows]
    parts = _partition(rows, positions, shares)
    if min(map(len, parts)) >= MIN_ROWS:
        return parts
    rank_of = {position: rank for rank, position in enumerate(sorted(set(positions)))}
    if len(rank_of) < MIN_ROWS * len(shares):
        return parts
    held_out = [max(MIN_ROWS / len(rank_of), share) for share in shares[1:]]
    ranks = [(rank_of[position] + 0.5) / len(rank_of) for position in positions]
    return _partition(rows, ranks, [1 - sum(held_out), *held_out])


def _partition(rows: Sequence[Row], positions: Sequence[float], shares: Sequence[float]) -> list[list[Row]]:
    bounds = [sum(shares[:end]) for end in range(1, len(shares))]
    parts: list[list[Row]] = [[] for _ in shares]
    for row, position in zip(rows, positions, strict=True):
        parts[bisect_right(bounds, position)].append(row)
    return parts


def first_by_hash(rows: list[Row], columns: Sequence[str], label: str, count: int) -> list[Row]:
    """The `count` rows with the smallest salted hashes, in the order of `rows`; the plain hash has made the splits."""
    order = sorted(range(len(rows)), key=lambda i: (hash_position(rows[i], columns, "limit"), str(rows[i].get(label))))
    return [rows[i] for i in sorted(order[:count])]


def draw_shots(rows: Sequence[Row], label: str, kind: LabelKind, shots: int, seed: int) -> list[Row]:
    """A draw for learning from few rows: `shots` rows of each class, in the order of `rows`.

    Where a row may have several classes (kind `many`), rows are drawn until each class, and no class, has at least
    `shots`. For tags, answers, texts and numbers it is `shots` rows in all. Equal seeds draw equal rows, and a draw of
    more rows contains the draw of fewer. Raises DeltatuneError naming the classes that have fewer rows.
    """
    if shots < 1:
        raise DeltatuneError(f"--shots {shots}: the number of rows to draw must be at least 1.")
    order = random.Random(f"shots {seed}").sample(range(len(rows)), len(rows))  # a string seeds alike on every machine
    if kind not in ("classes", "many"):
        if len(rows) < shots:
            raise DeltatuneError(f"--shots {shots}: there are only {len(rows)} rows to draw from.")
        return [rows[i] for i in sorted(order[:shots])]
    names = [row[label] or ["no class"] if kind == "many" else [row[label]] for row in rows]
    sizes = Counter(name for row_names in names for name in row_names)
    few = [f"--shots {shots}: the class {name!r} has only {sizes[name]} rows." for name in sizes if sizes[name] < shots]
    raise_all(few, f"each class needs {shots} rows to draw from; give fewer shots or more rows:" if few else "")
    drawn: Counter[str] = Counter()
    chosen = []
    for i in order:
        if any(drawn[name] < shots for name in names[i]):
            drawn.update(names[i])
            chosen.append(i)
    return [rows[i] for i in sorted(chosen)]


def complete(splits: Splits, columns: Sequence[str]) -> tuple[Splits, list[str]]:
    """All three splits, the missing ones made by hash of `columns`, and a note on each that was made."""
    train, validation, test = (splits.get(split) for split in SPLITS)
    if train is None:
        raise ValueError("complete() needs a train split")
    if validation is not None and test is not None:
        return {"train": train, "validation": validation, "test": test}, []
    if validation is None and test is None:
        parts = by_hash(train, columns, (1 - 2 * HELD_OUT, HELD_OUT, HELD_OUT))
        made = f"{HELD_OUT:.0%} of the rows became each of them, by hash of {_hashed(train, columns)}"
        note = f"no validation and no test split: {made}"
        return dict(zip(SPLITS, parts, strict=True)), [note]
    train, held_out = by_hash(train, columns, (1 - HELD_OUT, HELD_OUT))
    made = f"{HELD_OUT:.0%} of train was held out as validation, by hash of {_hashed(train, columns)}"
    if test is not None:
        return {"train": train, "validation": held_out, "test": test}, [f"no validation split: {made}"]
    note = f"no test split: the validation split is the test split, and {made}"
    return {"train": train, "validation": held_out, "test": validation or []}, [note]


def _hashed(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """What the hash is of, for notes."""
    media = rows and any(isinstance(rows[0].get(column), MediaFile) for column in columns)
    return "the file's name" if media else "the text"


def complete_documents(splits: Splits, column: str) -> tuple[Splits, list[str]]:
    """All three splits of a corpus, and a note on each that was made.

    Whole documents go by hash. A small corpus is split inside its documents: the end of each one is held out.
    """
    completed, notes = complete(splits, (column,))
    if len(splits["train"]) >= FEW_DOCUMENTS and all(completed.values()):
        return completed, notes
    if "validation" in splits and "test" in splits:
        return completed, notes
    both_missing = "validation" not in splits and "test" not in splits
    shares = (1 - 2 * HELD_OUT, HELD_OUT, HELD_OUT) if both_missing else (1 - HELD_OUT, HELD_OUT)
    documents = [_pieces(row, column, shares) for row in splits["train"]]
    parts = [[pieces[i] for pieces in documents if pieces[i][column].strip()] for i in range(len(shares))]
    end = f"the last {HELD_OUT:.0%} of {'each document' if len(documents) > 1 else 'the document'}"
    if both_missing:
        note = f"no validation and no test split: {end} became test, the {HELD_OUT:.0%} before it validation"
        return {"train": parts[0], "validation": parts[1], "test": parts[2]}, [note]
    if "test" in splits:
        return {**splits, "train": parts[0], "validation": parts[1]}, [f"no validation split: {end} became validation"]
    note = f"no test split: the validation split is the test split, and {end} of train became validation"
    return {"train": parts[0], "validation": parts[1], "test": splits["validation"]}, [note]


def _pieces(row: Row, column: str, shares: Sequence[float]) -> list[Row]:
    """The document cut into consecutive pieces of about these shares."""
    text = row[column]
    ends = [_cut_position(text, round(len(text) * sum(shares[: i + 1]))) for i in range(len(shares) - 1)]
    bounds = [0, *ends, len(text)]
    return [{**row, column: text[bounds[i] : bounds[i + 1]]} for i in range(len(shares))]


def _cut_position(text: str, position: int) -> int:
    """The start of the line at `position`; where the line is long, the start of the word; else `position` itself."""
    for separator, reach in (("\n", LINE_REACH), (" ", WORD_REACH)):
        before = text.rfind(separator, max(0, position - reach), position)
        if before >= 0:
            return before + 1
    return position
