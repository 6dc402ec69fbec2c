"""Variance components of scores: what the test rows and what the seeds add to the error of each method's mean score.

The score of run s of method m is y_ms = μ_m + b_m + u_ms. The rows are the same for all runs, so their error b_m does
not shrink with more runs; it comes from a bootstrap. u_ms is new in every run; its variance comes from the runs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from deltatune.tasks.metrics.corpus_score import Floats, Scorer
from deltatune.tasks.metrics.metric_facts import bounds

CELLS = 2_000_000
"""Largest number of resample weights in memory (8 bytes each)."""
SPREADS = np.array([0.25, 0.5, 1.0, 1.5, 2.0, 3.0])
"""Standard deviations of the logarithm of the seeds' variance over methods that are considered."""
UNSTABLE = 0.15
"""Share of methods whose variance may be anything up to `MOST_UNSTABLE` times the usual one."""
MOST_UNSTABLE = 1000.0
TYPICAL_SPREAD = 1.5
"""Scale of the half-normal prior of that deviation. At 1.5, seeds move the scores of two thirds of the methods by 0.47
to 2.1 times the typical deviation."""


@dataclass(frozen=True)
class UnitScores:
    """Scores of every unit of every method: a unit is a run, or the mean of the runs that share a cluster."""

    metric: str
    examples: int
    """Number of test rows n."""
    observed: dict[str, Floats]
    """By method: scores of its U units on the test rows, (U,)."""
    resampled: dict[str, Floats]
    """By method: scores on B resamples of the rows, the same for all methods, (U, B)."""
    means: dict[str, float]
    """By method: the mean over its runs."""
    labels: dict[str, tuple[object, ...]]
    """By method: what each unit is; units of one label share their training rows."""


def unit_scores(
    metric: str,
    scorers: Mapping[str, Sequence[Scorer]],
    examples: int,
    resamples: int = 2000,
    seed: int = 0,
    clusters: Mapping[str, Sequence[object]] | None = None,
) -> UnitScores:
    """Score every run on the same resamples of the test rows.

    scorers: by method, one Scorer a run, all over the same n examples. clusters: by method, what several runs share,
    such as their draw of training rows: runs on the same rows are not independent, so that their mean is one unit.
    """
    rng = np.random.default_rng(seed)
    all_examples = np.ones((1, examples))
    runs = {method: np.array([score(all_examples)[0] for score in each]) for method, each in scorers.items()}
    groups = {method: _units(method, len(each), (clusters or {}).get(method)) for method, each in runs.items()}
    parts: dict[str, list[Floats]] = {method: [] for method in scorers}
    step = max(1, CELLS // examples)
    for start in range(0, resamples, step):
        weights = _weights(rng, min(step, resamples - start), examples)
        for method, each in scorers.items():
            parts[method].append(_unit_means(np.array([score(weights) for score in each]), groups[method]))
    return UnitScores(
        metric,
        examples,
        {method: _unit_means(each, groups[method]) for method, each in runs.items()},
        {method: np.concatenate(each, axis=1) for method, each in parts.items()},
        {method: float(each.mean()) for method, each in runs.items()},
        {method: tuple(group) for method, group in groups.items()},
    )


@dataclass(frozen=True)
class Components:
    """The parts of the error of M methods' mean scores."""

    methods: tuple[str, ...]
    mean: Floats
    """Mean scores, (M,)."""
    units: tuple[tuple[object, ...], ...]
    """By method: the labels of its units."""
    rows: Floats
    """Covariance of the errors b that the test rows make, (M, M)."""
    grid: Floats
    """Variances of one unit around its method's mean that the seeds may have, (M, G)."""
    belief: Floats
    """How probable each is, given the scores of all methods, (M, G)."""
    chance: Floats
    """Part of the variance of one unit that chance answers to single rows make, (M,)."""
    covers_seeds: bool = True
    """Whether any method was run more than once, so that the spread of the seeds is known at all."""
    shared: float = 0.0
    """Correlation of two methods' units with one label: both were trained on the same rows."""

    @property
    def variance(self) -> Floats:
        """Moderated variance of one unit, the geometric mean of the belief, (M,)."""
        with np.errstate(divide="ignore"):
            logs = np.where(self.belief > 0, np.log(self.grid) * self.belief, 0.0)
        return np.asarray(np.exp(logs.sum(1)), dtype=np.float64)

    def sample_variances(self, rng: np.random.Generator, draws: int) -> Floats:
        """Variances that agree with the runs, (draws, M)."""
        cumulative = np.cumsum(self.belief, axis=1)
        uniform = rng.random((len(self.grid), draws))
        places = [np.searchsorted(c[:-1], u) for c, u in zip(cumulative, uniform, strict=True)]
        return np.stack([of[place] for of, place in zip(self.grid, places, strict=True)], axis=1)


def components(scores: UnitScores, fixed: Collection[str] = ()) -> Components:
    """Split the error of each mean score into rows and seeds.

    fixed: methods whose result does not depend on a seed, such as a prompt without training.
    """
    methods = tuple(scores.observed)
    resampled = np.concatenate([scores.resampled[method] for method in methods])
    observed = np.concatenate([scores.observed[method] for method in methods])
    covariance = np.atleast_2d(np.cov(resampled)) if resampled.shape[1] > 1 else np.zeros((len(observed),) * 2)
    result = split(methods, observed, covariance, [scores.labels[method] for method in methods], fixed, one_row(scores))
    return replace(result, mean=np.array([scores.means[method] for method in methods]))


def split(
    methods: Sequence[str],
    observed: Floats,
    covariance: Floats,
    labels: Sequence[tuple[object, ...]],
    fixed: Collection[str] = (),
    one_row: float = 0.0,
) -> Components:
    """Like `components`, from the scores of all units (R,) and the covariance (R, R) that the test rows give them.

    one_row: what one row more or less can change. Its square is added to the variance of each method: without it, a
    method that answers all rows, or all but one, would have no error (Agresti & Min 2005 add half a row to each cell).
    """
    counts = np.array([len(each) for each in labels])
    starts = np.concatenate([[0], np.cumsum(counts)])
    parts = [slice(starts[i], starts[i + 1]) for i in range(len(counts))]
    rows = np.array([[covariance[a, b].mean() for b in parts] for a in parts])
    spread, chance = np.zeros(len(counts)), np.zeros(len(counts))
    for i, part in enumerate(parts):
        size = counts[i]
        if size > 1:
            own = covariance[part, part]
            between = (own.sum() - np.trace(own)) / (size * (size - 1))
            spread[i], chance[i] = observed[part].var(ddof=1), max(0.0, np.trace(own) / size - between)
            rows[i, i] = max(0.0, between)
    constant = np.array([method in fixed for method in methods])
    if constant.any():
        # One result however often it is run: all of its variance is that of the rows.
        rows[constant, constant] = [covariance[part, part].mean() for part, c in zip(parts, constant, strict=True) if c]
    rows = _positive(rows) + one_row**2 * np.eye(len(counts))
    spread = np.maximum(spread, one_row**2 / 4)  # scores have steps
    grid, belief = seed_variances(spread, chance, np.where(constant, 0, counts - 1), constant)
    mean = np.array([observed[part].mean() for part in parts])
    covers_seeds = bool(np.any((counts > 1) & ~constant))
    result = Components(tuple(methods), mean, tuple(labels), rows, grid, belief, chance, covers_seeds)
    shared = _shared_correlation([observed[part] for part in parts], labels, result.variance)
    return replace(result, shared=shared)


def seed_variances(
    spread: Floats, chance: Floats, freedom: Floats, constant: Sequence[bool] | NDArray[np.bool_]
) -> tuple[Floats, Floats]:
    """What the runs of all methods tell of the variance of each: values (M, G) and their probabilities (M, G).

    The variance of a unit is that of chance answers to single rows, which the rows tell, plus that of the seeds. The
    logarithms of the latter are normal over the methods around a level that nothing is assumed of, with a deviation
    that is mostly below `TYPICAL_SPREAD`, but for a share of unstable methods. A few runs of each method together say
    what is usual, and how alike the methods are: the idea of Smyth 2004, https://doi.org/10.2202/1544-6115.1027.

    spread: variance of the units, (M,). chance: part of it by chance answers, (M,). freedom: units - 1, (M,); methods
    with 0 borrow from the others. constant: no variance by definition, (M,).
    """
    free = ~np.asarray(constant, bool)
    several = free & (freedom > 0)
    largest = float(np.maximum(spread, chance)[several].max(initial=0.0))
    if largest == 0.0:
        return np.zeros((len(spread), 1)), np.ones((len(spread), 1))
    smallest = float(np.maximum(spread, chance)[several].min())
    logs = np.linspace(np.log(max(smallest, 1e-9 * largest) * 1e-2), np.log(largest * 1e4), 90)  # (G,)
    grid = chance[:, None] + np.exp(logs)  # (M, G)
    levels, spreads = (each.ravel() for each in np.meshgrid(logs[::2], SPREADS))  # (H,)
    around = np.exp(-(((logs - levels[:, None]) / spreads[:, None]) ** 2) / 2)  # (H, G)
    around /= around.sum(1, keepdims=True)
    above = ((logs >= levels[:, None]) & (logs <= levels[:, None] + np.log(MOST_UNSTABLE))).astype(np.float64)
    around = (1 - UNSTABLE) * around + UNSTABLE * above / above.sum(1, keepdims=True)
    half = freedom[:, None] / 2
    likelihood = -half * np.log(grid) - half * spread[:, None] / grid
    likelihood = np.exp(likelihood - likelihood.max(1, keepdims=True))  # (M, G)
    evidence = likelihood[several] @ around.T  # (m, H)
    weight = np.log(evidence + 1e-300).sum(0) - (spreads / TYPICAL_SPREAD) ** 2 / 2
    weight = np.exp(weight - weight.max())
    norm = np.maximum(likelihood @ around.T, 1e-300)  # (M, H)
    belief = likelihood * ((weight / norm) @ around)
    belief /= belief.sum(1, keepdims=True)
    return np.where(free[:, None], grid, 0.0), belief


def one_row(scores: UnitScores) -> float:
    """How far one row of n can move a score, roughly: the range of the metric, or the size of the scores, over n."""
    low, high = bounds(scores.metric)
    size = max(abs(mean) for mean in scores.means.values())
    return (high - low if high - low <= 1 else min(high - low, size)) / scores.examples


def _shared_correlation(observed: Sequence[Floats], labels: Sequence[tuple[object, ...]], variance: Floats) -> float:
    """Correlation over the units that two methods share, the same for all pairs; from few units shrunk towards 0."""
    products, weights = 0.0, 0.0
    for i, first in enumerate(labels):
        for j in range(i):
            both = [(observed[i][a], observed[j][labels[j].index(x)]) for a, x in enumerate(first) if x in labels[j]]
            if len(both) > 1 and variance[i] > 0 and variance[j] > 0:
                covariance = np.cov(np.array(both).T)[0, 1]
                products += float(covariance / np.sqrt(variance[i] * variance[j])) * (len(both) - 1)
                weights += len(both) + 1
    return float(np.clip(products / weights, 0.0, 0.95)) if weights else 0.0


def _positive(matrix: Floats) -> Floats:
    """The nearest covariance: eigenvalues that the subtraction of components made negative become 0."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return np.asarray((vectors * np.maximum(values, 0.0)) @ vectors.T, dtype=np.float64)


def _units(method: str, runs: int, clusters: Sequence[object] | None) -> dict[object, list[int]]:
    """Label of a unit -> the numbers of its runs. Runs that all share one cluster are units themselves."""
    groups: dict[object, list[int]] = {}
    for i, cluster in enumerate(clusters or []):
        groups.setdefault(cluster, []).append(i)
    return groups if len(groups) > 1 else {(method, i): [i] for i in range(runs)}


def _unit_means(scores: Floats, groups: Mapping[object, list[int]]) -> Floats:
    """Scores of runs (S, ...) -> of units (U, ...)."""
    return np.array([scores[numbers].mean(0) for numbers in groups.values()])


def _weights(rng: np.random.Generator, rows: int, n: int) -> Floats:
    """How often each of n examples is drawn in each of `rows` resamples, (rows, n); a row sums to n."""
    drawn = rng.integers(0, n, (rows, n)) + np.arange(rows)[:, None] * n
    return np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)
