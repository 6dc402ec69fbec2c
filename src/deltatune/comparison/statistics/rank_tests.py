"""Ranks of methods over several data sets: Friedman's test and Nemenyi's critical difference.

Demšar 2006, Statistical comparisons of classifiers over multiple data sets, https://jmlr.org/papers/v7/demsar06a.html.
Scores of different data sets have no common scale, but ranks have: on every data set each method gets one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deltatune.tasks.metrics.corpus_score import Floats

PERMUTATIONS = 20_000
"""Permutations of the ranks that give the p value; fewer where they would hold more than `MOST` ranks."""
MOST = 10_000_000


@dataclass(frozen=True)
class Ranks:
    """Methods ranked over data sets, the best first."""

    methods: tuple[str, ...]
    average: tuple[float, ...]
    """Average rank of each method; 1 is best, and methods with equal scores share the mean of their ranks."""
    sets: int
    """Data sets that have a score of every method."""
    statistic: float | None
    """Friedman's χ², corrected for ties; None for fewer than two methods or data sets."""
    p: float | None
    """Probability of a χ² as large if all methods were alike, by permutation of the ranks within each data set."""
    critical_difference: float | None
    """Average ranks that lie this far apart differ, at 5 % for all pairs together (Nemenyi)."""
    cliques: tuple[tuple[str, ...], ...]
    """Largest groups of methods whose average ranks lie closer than that: the bars of the figure."""

    def to_json(self) -> dict[str, Any]:
        """As plain data, in the schema of study.json."""
        return {
            "test": "Friedman + Nemenyi",
            "statistic": self.statistic,
            "p": self.p,
            "critical_difference": self.critical_difference,
            "cliques": [list(clique) for clique in self.cliques],
            "sets": self.sets,
        }


def rank_methods(
    scores: Mapping[str, Sequence[float | None]], lower: bool | Sequence[bool] = False, alpha: float = 0.05
) -> Ranks:
    """Rank methods over data sets and test whether they differ.

    scores: by method, one score for each data set; sets without a score of every method are left out. lower: whether a
    lower score is better, for all sets or for each. Raises ValueError if the methods have different numbers of sets.
    """
    counts = {method: len(each) for method, each in scores.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"every method needs one score (or None) for each data set; their numbers are {counts}")
    methods, sets = tuple(scores), max(counts.values(), default=0)
    signs = np.where(np.broadcast_to(np.asarray(lower, bool), (sets,)), -1.0, 1.0)
    table = np.array([[math.nan if x is None else float(x) for x in each] for each in scores.values()])
    table = table.reshape(len(methods), sets).T * signs[:, None]  # (N, k), higher is better
    ranks = row_ranks(table[~np.isnan(table).any(1)])
    n = len(ranks)
    if n == 0:
        return Ranks(methods, (), 0, None, None, None, ())
    average = ranks.mean(0)
    order = [int(i) for i in np.argsort(average, kind="stable")]
    names, means = tuple(methods[i] for i in order), tuple(float(average[i]) for i in order)
    if n < 2 or len(methods) < 2:
        return Ranks(names, means, n, None, None, None, ())
    difference = critical_difference(len(methods), n, alpha)
    statistic, p = friedman(ranks)
    return Ranks(names, means, n, statistic, p, difference, _cliques(names, means, difference))


def friedman(ranks: Floats, seed: int = 0) -> tuple[float, float]:
    """Friedman's χ² with the correction for ties, and its p value, from the ranks (N, k) of k methods on N data sets.

    The p value is that of a permutation test: χ² and F approximate it badly for a few data sets. It is 1 if all ranks
    are tied.
    """
    n, k = ranks.shape
    spread = float(((ranks - (k + 1) / 2) ** 2).sum())
    if spread == 0:
        return 0.0, 1.0
    scale = n * n * (k - 1) / spread
    statistic = scale * float(((ranks.mean(0) - (k + 1) / 2) ** 2).sum())
    count = max(1000, min(PERMUTATIONS, MOST // ranks.size))
    rng, total = np.random.default_rng(seed), np.zeros((count, k))
    for row in ranks:
        total += rng.permuted(np.broadcast_to(row, (count, k)), axis=1)
    permuted = scale * ((total / n - (k + 1) / 2) ** 2).sum(1)
    return statistic, float((1 + np.sum(permuted >= statistic * (1 - 1e-9))) / (1 + count))


def critical_difference(methods: int, sets: int, alpha: float = 0.05) -> float:
    """Nemenyi's critical difference of average ranks: q √(k(k+1)/6N)."""
    return studentised_range(methods, alpha) / math.sqrt(2) * math.sqrt(methods * (methods + 1) / (6 * sets))


def studentised_range(count: int, alpha: float = 0.05) -> float:
    """The value that the range of `count` standard normal variables exceeds with probability alpha."""
    z = np.linspace(-9.0, 9.0, 1801)
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    below = _cumulative(z)
    low, high = 0.0, 20.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        # P(range <= r) = k ∫ φ(z) (Φ(z) - Φ(z - r))^(k-1) dz, over the largest value z
        inside = float(count * np.trapezoid(density * (below - _cumulative(z - middle)) ** (count - 1), z))
        low, high = (middle, high) if inside < 1 - alpha else (low, middle)
    return high


def _cumulative(z: Floats) -> Floats:
    return np.array([math.erfc(-x / math.sqrt(2)) / 2 for x in z])


def row_ranks(table: Floats) -> Floats:
    """Ranks (N, k) of scores (N, k) in each row: 1 for the highest, the mean rank for ties."""
    above = (table[:, None, :] > table[:, :, None]).sum(2)
    equal = (table[:, None, :] == table[:, :, None]).sum(2)
    return np.asarray(above + (equal + 1) / 2, dtype=np.float64)


def _cliques(names: tuple[str, ...], means: tuple[float, ...], difference: float) -> tuple[tuple[str, ...], ...]:
    cliques: list[tuple[str, ...]] = []
    reached = 0
    for start in range(len(means)):
        end = sum(mean - means[start] <= difference for mean in means)
        if end > reached and end - start > 1:
            cliques.append(names[start:end])
            reached = end
    return tuple(cliques)
