"""Measures of continual learning from the matrix R, where `R[i][j]` is the score on task j after learning task i.

Average score `A = mean_j R[T][j]`, backward transfer `B = mean_{j<T} R[T][j] - R[j][j]` (Lopez-Paz and Ranzato 2017,
https://arxiv.org/abs/1706.08840), forgetting `F = mean_{j<T} max_{l<T} R[l][j] - R[T][j]` (Chaudhry et al. 2018,
https://arxiv.org/abs/1801.10112).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from deltatune.tasks.metrics.mean_score import comparable

Matrix = Sequence[Sequence[float]]
"""T rows; row i has the scores on tasks 0 to i after learning task i."""


def transfer(matrix: Matrix, metrics: Sequence[str]) -> dict[str, float]:
    """`average`, `backward_transfer` and `forgetting` of a matrix; a metric m that is better when lower is 1/(1 + m).

    metrics: the metric of each task. With a single task there is nothing to forget: both are 0.
    """
    scores = [[comparable(score, metrics[j]) for j, score in enumerate(row)] for row in matrix]
    last, earlier = scores[-1], range(len(scores) - 1)
    best = [max(scores[i][j] for i in range(j, len(scores) - 1)) for j in earlier]
    return {
        "average": mean(last),
        "backward_transfer": mean([last[j] - scores[j][j] for j in earlier] or [0.0]),
        "forgetting": mean([best[j] - last[j] for j in earlier] or [0.0]),
    }


def over_seeds(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of every number over the seeds, and the standard deviation of the measures, None for a single seed."""
    names = [name for name in ("average", "backward_transfer", "forgetting") if name in results[0]]
    values = {name: [float(result[name]) for result in results] for name in names}
    return {
        "matrix": _mean_matrix([result["matrix"] for result in results]),
        **{name: mean(each) for name, each in values.items()},
        "deviation": {name: stdev(each) if len(each) > 1 else None for name, each in values.items()},
        "seeds": list(results),
    }


def _mean_matrix(matrices: Sequence[Matrix]) -> list[list[float]]:
    return [[mean(matrix[i][j] for matrix in matrices) for j in range(len(row))] for i, row in enumerate(matrices[0])]
