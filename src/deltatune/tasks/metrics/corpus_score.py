"""Corpus scores: a metric of all rows, which a bootstrap can compute again under row weights.

A bootstrap resample of N rows is a vector of N counts. A score that takes counts as weights needs no copied rows.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltatune.core.errors import DeltatuneError

Floats = NDArray[np.float64]
Scorer = Callable[[Floats], Floats]
"""Row weights (B, N) -> one score for each row of weights (B,)."""


@dataclass(frozen=True)
class MetricFacts:
    """The direction and the range of a metric. Most metrics lie between 0 and 1, and higher is better."""

    lower_is_better: bool = False
    """Whether a smaller value is a better one."""
    lowest: float = 0.0
    """Smallest possible value."""
    highest: float = 1.0
    """Largest possible value."""


UNBOUNDED_ERROR = MetricFacts(lower_is_better=True, highest=math.inf)
"""Losses and error rates: lower is better, and there is no upper bound."""


class CorpusScore(ABC):
    """One metric of N rows. An undefined score is 0.0, never NaN, so that no NaN gets into a ranking."""

    @abstractmethod
    def score(self) -> float:
        """The score when each row counts once."""

    @abstractmethod
    def resampled(self, weights: NDArray[Any]) -> Floats:
        """Weights (B, N), how often each of B resamples holds each row -> scores (B,)."""


@dataclass(frozen=True)
class AdditiveScore(CorpusScore):
    """A score that is a function of sums over rows, value(weights @ sums): a bootstrap is one matrix product."""

    sums: Floats
    """What each row adds (N, S)."""
    value: Callable[[Floats], Floats]
    """Sums (..., S) -> scores (...)."""

    def __post_init__(self) -> None:
        if self.sums.ndim != 2:
            raise DeltatuneError(f"the sums of an additive score have shape (rows, sums), not {self.sums.shape}")

    def score(self) -> float:
        return float(self.value(self.sums.sum(0)))

    def resampled(self, weights: NDArray[Any]) -> Floats:
        if weights.ndim != 2 or weights.shape[1] != len(self.sums):
            raise DeltatuneError(f"weights {weights.shape} must have one column for each of {len(self.sums)} examples")
        return np.asarray(self.value(np.asarray(weights, np.float64) @ self.sums), dtype=np.float64)


def mean_score(
    values: Sequence[float] | NDArray[Any], counted: Sequence[bool] | NDArray[Any] | None = None
) -> AdditiveScore:
    """The mean of one value a row (N,), over all rows or over those that `counted` (N,) marks."""
    column = np.asarray(values, dtype=np.float64)
    mask = np.ones_like(column) if counted is None else np.asarray(counted, dtype=np.float64)
    return ratio_score(column * mask, mask)


def ratio_score(
    numerators: Sequence[float] | NDArray[Any], denominators: Sequence[float] | NDArray[Any]
) -> AdditiveScore:
    """The sum of the numerators (N,) divided by the sum of the denominators (N,)."""
    sums = np.stack([np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)], axis=-1)
    return AdditiveScore(sums, lambda total: ratio(total[..., 0], total[..., 1]))


def ratio(numerator: NDArray[Any], denominator: NDArray[Any]) -> Floats:
    """numerator / denominator, and 0 where the denominator is not positive: an undefined score counts as no skill."""
    top, bottom = np.broadcast_arrays(np.asarray(numerator, np.float64), np.asarray(denominator, np.float64))
    return np.asarray(np.divide(top, bottom, out=np.zeros(top.shape), where=bottom > 0), dtype=np.float64)


def check_pairs(predictions: Sequence[Any], references: Sequence[Any]) -> None:
    """Raise DeltatuneError unless there is at least one example, and a prediction for each."""
    if len(predictions) != len(references):
        raise DeltatuneError(f"{len(predictions)} predictions but {len(references)} examples with references")
    if not len(predictions):
        raise DeltatuneError("there is nothing to score: no predictions")
