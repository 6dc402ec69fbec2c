"""A score of a corpus as sums over its examples, so that a bootstrap needs one matrix product and no copied rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltatune.core.errors import DeltatuneError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Tally:
    """A score that is a function of sums over examples: value(weights @ sums)."""

    sums: Floats
    """What each example adds (N, S)."""
    value: Callable[[Floats], Floats]
    """Sums (..., S) -> scores (...). A score that is undefined is 0.0, never NaN."""

    def __post_init__(self) -> None:
        if self.sums.ndim != 2:
            raise DeltatuneError(f"a tally's sums have shape (examples, sums), not {self.sums.shape}")

    def score(self) -> float:
        """The score of all examples."""
        return float(self.value(self.sums.sum(0)))

    def resampled(self, weights: NDArray[Any]) -> Floats:
        """Weights (B, N), how often each of B resamples holds each example -> scores (B,)."""
        if weights.ndim != 2 or weights.shape[1] != len(self.sums):
            raise DeltatuneError(f"weights {weights.shape} must have one column for each of {len(self.sums)} examples")
        return np.asarray(self.value(weights.astype(np.float64) @ self.sums), dtype=np.float64)


def mean_of(values: Sequence[float] | NDArray[Any], among: Sequence[bool] | NDArray[Any] | None = None) -> Tally:
    """The mean of one value an example (N,), over all examples or over those that `among` (N,) marks."""
    own = np.asarray(values, dtype=np.float64)
    counted = np.ones_like(own) if among is None else np.asarray(among, dtype=np.float64)
    return ratio_of(own * counted, counted)


def ratio_of(tops: Sequence[float] | NDArray[Any], bottoms: Sequence[float] | NDArray[Any]) -> Tally:
    """The sum of the tops (N,) divided by that of the bottoms (N,)."""
    sums = np.stack([np.asarray(tops, dtype=np.float64), np.asarray(bottoms, dtype=np.float64)], axis=-1)
    return Tally(sums, lambda total: ratio(total[..., 0], total[..., 1]))


def ratio(top: NDArray[Any], bottom: NDArray[Any]) -> Floats:
    """top / bottom, and 0 where bottom is not positive."""
    top, bottom = np.broadcast_arrays(np.asarray(top, np.float64), np.asarray(bottom, np.float64))
    return np.asarray(np.divide(top, bottom, out=np.zeros(top.shape), where=bottom > 0), dtype=np.float64)


def check_pairs(predictions: Sequence[Any], references: Sequence[Any]) -> None:
    """Raise DeltatuneError unless there is a prediction for each example, and an example at all."""
    if len(predictions) != len(references):
        raise DeltatuneError(f"{len(predictions)} predictions but {len(references)} examples with references")
    if not len(predictions):
        raise DeltatuneError("there is nothing to score: no predictions")
