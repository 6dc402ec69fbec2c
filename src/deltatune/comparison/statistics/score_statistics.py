"""Statistics of scores: confidence intervals, the Pareto front, and PSCP. `verdicts` compares methods.

A resample draws test examples with replacement. To that comes the error of the seeds, normal with a variance that the
runs of all methods tell (`variance_components`): resampled seeds would show too little of it, two or three are few.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deltatune.comparison.statistics.variance_components import components, one_row, unit_scores
from deltatune.tasks.metrics.classification_and_regression import CLASS_METRICS, weighted_score
from deltatune.tasks.metrics.corpus_score import Floats, Scorer
from deltatune.tasks.metrics.metric_facts import bounds

Predictions = Mapping[str, Sequence[NDArray[np.generic]]]
"""Method -> one array (n,) per seed, in the order of the test examples."""


@dataclass(frozen=True)
class Interval:
    """A mean score and its two-sided 95 % interval."""

    mean: float
    """Mean over the seeds of the score on all test examples."""
    low: float
    high: float


@dataclass(frozen=True)
class Draws:
    """Scores of every method on the same B resamples."""

    metric: str
    mean: dict[str, float]
    """Mean over seeds on the original examples."""
    resampled: dict[str, Floats]
    """Mean over seeds on each resample, (B,)."""


def resample(
    metric: str,
    predictions: Predictions,
    references: NDArray[np.generic],
    resamples: int = 2000,
    seed: int = 0,
    labels: int = 0,
) -> Draws:
    """Score all methods on the same B resamples of examples and seeds.

    references: (n,) class indices, or values for a correlation. Methods may have different numbers of seeds.
    labels: the number of classes of the task, some of which the test rows may lack.
    Raises ValueError if there is nothing to resample or the shapes do not agree.
    """
    if not len(references) or not all(len(seeds) for seeds in predictions.values()):
        raise ValueError("a bootstrap needs at least one test example, and one array of predictions for each method")
    return draw(metric, _scorers(metric, predictions, references, labels), len(references), resamples, seed)


def draw(
    metric: str,
    scorers: Mapping[str, Sequence[Scorer]],
    examples: int,
    resamples: int = 2000,
    seed: int = 0,
    clusters: Mapping[str, Sequence[object]] | None = None,
    fixed: Collection[str] = (),
) -> Draws:
    """Like `resample`, for any score: each method has one Scorer per run, over the same n examples.

    clusters: by method, what several runs share, such as their draw of training rows: the variance of the means of the
    clusters counts then, for runs on the same rows are not independent. fixed: methods whose result does not depend on
    a seed; another method with a single run is taken to vary as the others do.
    """
    scores = unit_scores(metric, scorers, examples, resamples, seed, clusters)
    parts = components(scores, fixed)
    rng = np.random.default_rng([seed, 1])
    variances = np.maximum(parts.sample_variances(rng, resamples) - parts.chance, 0.0)  # chance is in the rows already
    common: dict[object, Floats] = {}
    resampled = {}
    for i, method in enumerate(parts.methods):
        noise = np.zeros(resamples)
        for label in parts.units[i]:
            together = common.setdefault(label, rng.standard_normal(resamples))
            noise += math.sqrt(parts.shared) * together + math.sqrt(1 - parts.shared) * rng.standard_normal(resamples)
        of_seeds = np.sqrt(variances[:, i]) * noise / len(parts.units[i])
        of_one_row = one_row(scores) * rng.standard_normal(resamples)
        resampled[method] = np.clip(scores.resampled[method].mean(0) + of_seeds + of_one_row, *bounds(metric))
    return Draws(metric, scores.means, resampled)


def intervals(
    metric: str,
    predictions: Predictions,
    references: NDArray[np.generic],
    resamples: int = 2000,
    seed: int = 0,
    labels: int = 0,
) -> dict[str, Interval]:
    """Mean score and 95 % percentile interval of each method.

    The interval covers examples and seeds; with one seed it covers examples alone.
    """
    return intervals_of(resample(metric, predictions, references, resamples, seed, labels))


def intervals_of(draws: Draws) -> dict[str, Interval]:
    """`intervals` of existing resamples."""
    return {method: Interval(mean, *_ninety_five(draws.resampled[method])) for method, mean in draws.mean.items()}


def pareto(points: Sequence[tuple[float, float | None]], lower: bool = False) -> list[int]:
    """Indices of the (cost, score) points that no other point dominates, cheapest first.

    A lower cost is better, and a higher score, or a lower score with `lower`. A point without a score is never on the
    front; of equal points only the first is.
    """
    sign = -1.0 if lower else 1.0
    scored = [(cost, sign * s, i) for i, (cost, s) in enumerate(points) if s is not None and not math.isnan(s)]
    front: list[int] = []
    best = -math.inf
    for _, score, i in sorted(scored, key=lambda point: (point[0], -point[1], point[2])):
        if score > best:
            front.append(i)
            best = score
    return front


@dataclass(frozen=True)
class PscpConstants:
    """Reference costs and exponents of PSCP: a cost equal to its reference with exponent 1 halves the score.

    Defaults are the published ones, chosen for 7-8 B models on one 94 GB accelerator.
    """

    params: float = 5e8
    """C_p: trainable parameters."""
    flops: float = 1e13
    """C_f: extra FLOPs of one forward pass over the bare model's."""
    memory: float = 9.4e10
    """C_m: peak memory in training, bytes."""
    beta_params: float = 1.0
    beta_flops: float = 1.0
    beta_memory: float = 1.0


def pscp(
    score: float, params: float, extra_flops: float, memory: float, constants: PscpConstants | None = None
) -> float:
    """PSCP = P · (1+M_p/C_p)^-β_p · (1+M_f/C_f)^-β_f · (1+M_m/C_m)^-β_m.

    Belanec et al. 2025, https://arxiv.org/abs/2511.21285
    score: P, larger is better. params: M_p, trainable parameters. extra_flops: M_f, FLOPs of a forward pass beyond the
    bare model's (0 for a merged adapter; less than 0 counts as 0). memory: M_m, peak bytes in training.
    """
    c = constants or PscpConstants()
    return float(
        score
        * (1 + params / c.params) ** -c.beta_params
        * (1 + max(extra_flops, 0.0) / c.flops) ** -c.beta_flops
        * (1 + memory / c.memory) ** -c.beta_memory
    )


def _scorers(
    metric: str, predictions: Predictions, references: NDArray[np.generic], labels: int
) -> dict[str, list[Scorer]]:
    classes = labels
    if metric in CLASS_METRICS:
        # The same number of classes for all methods, or F1 would be binary for some and macro for others.
        arrays = [references, *(array for seeds in predictions.values() for array in seeds)]
        classes = max(labels, int(max(np.max(array.astype(np.int64)) for array in arrays)) + 1)
    return {
        method: [weighted_score(metric, array, references, classes).resampled for array in seeds]
        for method, seeds in predictions.items()
    }


def _ninety_five(values: Floats) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
