"""Rows that an adapter was trained on, as 64-bit hashes: whether a row is among them can be asked, no text can be read.

A hash has 48 bits of the row's texts and 16 bits of its label, so a text with another label is recognised too. Two
different texts share 48 bits once in 2.8e14 pairs: 100,000 rows against 100,000 others give 0.00004 false matches.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from deltatune.core.errors import DeltatuneError

Hashes = NDArray[np.uint64]
"""Hashes of rows, (N,)."""
LABEL_BITS = np.uint64(16)
"""Low bits of a hash, which are the label's."""


def no_rows() -> Hashes:
    """No hashes."""
    return np.zeros(0, np.uint64)


@dataclass(frozen=True)
class Overlap:
    """How many of some rows an adapter knows."""

    same_label: int
    """Rows with a known text and its label."""
    other_label: int
    """Rows with a known text, but another label."""

    @property
    def rows(self) -> int:
        """Rows with a known text."""
        return self.same_label + self.other_label


@dataclass(frozen=True)
class TrainedRows:
    """Hashes of the rows that an adapter was trained on and of those that selected it, each sorted, without repeats."""

    train: Hashes = field(default_factory=no_rows)
    """Rows that were trained on."""
    validation: Hashes = field(default_factory=no_rows)
    """Rows that chose a learning rate, an epoch or a method, or were scored during training."""
    complete: bool = True
    """Whether these are all rows: not so if training began with an adapter whose rows are unknown."""

    def with_rows(self, train: Hashes, validation: Hashes) -> TrainedRows:
        """These rows and further ones."""
        return replace(self, train=np.union1d(self.train, train), validation=np.union1d(self.validation, validation))


def overlap(rows: Hashes, known: Hashes) -> Overlap:
    """How many of the rows, repeats counted, are known, and how many of their texts."""
    same = int(np.isin(rows, known).sum())
    texts = int(np.isin(rows >> LABEL_BITS, known >> LABEL_BITS).sum())
    return Overlap(same, texts - same)


def rows_of_all(parents: Iterable[TrainedRows | None]) -> TrainedRows:
    """The rows of several adapters together, for one that was made of them."""
    total = TrainedRows()
    for parent in parents:
        known = parent or TrainedRows(complete=False)
        complete = total.complete and known.complete
        total = replace(total.with_rows(known.train, known.validation), complete=complete)
    return total


def hashes_from(values: NDArray[np.int64], where: str) -> Hashes:
    """Stored hashes. Raises DeltatuneError for anything else than one dimension of 64-bit integers."""
    if values.ndim != 1 or values.dtype != np.int64:
        raise DeltatuneError(f"{where} does not hold hashes of rows; the file is damaged")
    return np.sort(values.view(np.uint64))
