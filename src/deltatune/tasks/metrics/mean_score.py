"""The mean of several tasks' primary metrics, each on its own rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltatune.tasks.metrics.corpus_score import CorpusScore, Floats
from deltatune.tasks.metrics.metric_facts import lower_is_better


def comparable(value: Any, metric: str) -> Any:
    """A metric's value as one of which higher is better: m, or 1/(1 + m) for losses and errors m."""
    return 1 / (1 + value) if lower_is_better(metric) else value


@dataclass(frozen=True)
class PartScore(CorpusScore):
    """A score of one part, under weights of the rows of all parts."""

    part_score: CorpusScore
    rows: Sequence[int]

    def score(self) -> float:
        return self.part_score.score()

    def resampled(self, weights: NDArray[Any]) -> Floats:
        return self.part_score.resampled(np.asarray(weights)[:, list(self.rows)])


@dataclass(frozen=True)
class MeanScore(CorpusScore):
    """The mean of the parts' primary metrics."""

    parts: Sequence[tuple[CorpusScore, str]]

    def score(self) -> float:
        return float(self._mean(lambda part: part.score()))

    def resampled(self, weights: NDArray[Any]) -> Floats:
        return np.asarray(self._mean(lambda part: part.resampled(weights)), np.float64)

    def _mean(self, value_of: Callable[[CorpusScore], Any]) -> Any:
        values = [comparable(value_of(part), metric) for part, metric in self.parts]
        return sum(values) / len(values)
