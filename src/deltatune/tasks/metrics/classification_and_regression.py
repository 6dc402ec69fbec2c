"""Classification and regression metrics in numpy, under row weights; equal to scikit-learn's and scipy's.

Each metric is written once, as a function of row weights. The plain metric has all weights 1. To add one, write its
function, name it in CLASS_METRICS or REGRESSION_METRICS, and add FACTS if it may leave [0, 1] or if lower is better.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltatune.tasks.metrics.corpus_score import UNBOUNDED_ERROR, CorpusScore, Floats, MetricFacts, Scorer, ratio

Labels = NDArray[np.int64]
"""Class numbers (N,); a prediction of -1 is of no class."""


# ---- class metrics: class numbers (N,) of `classes` classes


def accuracy(predictions: Labels, references: Labels, classes: int) -> Scorer:
    """Share of the rows whose predicted class is the reference. With one label a row, micro F1 is the same."""
    right = (predictions == references).astype(np.float64)
    return lambda weights: ratio(weights @ right, weights.sum(1))


def f1(predictions: Labels, references: Labels, classes: int) -> Scorer:
    """F1 of class 1 of two; `f1_macro` for more classes."""
    if classes > 2:
        return f1_macro(predictions, references, classes)
    predicted, true = _is_one(predictions), _is_one(references)
    return lambda weights: ratio(2 * (weights @ (predicted * true)), weights @ (predicted + true))


def precision(predictions: Labels, references: Labels, classes: int) -> Scorer:
    """Share of the rows predicted as class 1 that are of it; for more classes than two the mean, as in `f1_macro`."""
    if classes > 2:
        return _mean_of_classes(lambda hits, predicted, true: ratio(hits, predicted), predictions, references, classes)
    predicted, true = _is_one(predictions), _is_one(references)
    return lambda weights: ratio(weights @ (predicted * true), weights @ predicted)


def recall(predictions: Labels, references: Labels, classes: int) -> Scorer:
    """Share of the rows of class 1 that are predicted as it; for more classes than two the mean, as in `f1_macro`."""
    if classes > 2:
        return _mean_of_classes(lambda hits, predicted, true: ratio(hits, true), predictions, references, classes)
    predicted, true = _is_one(predictions), _is_one(references)
    return lambda weights: ratio(weights @ (predicted * true), weights @ true)


def f1_macro(predictions: Labels, references: Labels, classes: int) -> Scorer:
    """Mean F1 over the classes that a resample holds, in predictions or references: rare classes count as much."""
    return _mean_of_classes(
        lambda hits, predicted, true: ratio(2 * hits, predicted + true), predictions, references, classes
    )


def matthews(predictions: Labels, references: Labels, classes: int) -> Scorer:
    """Matthews correlation, R_K for more than two classes (Gorodkin 2004, doi:10.1016/j.compbiolchem.2004.09.006)."""
    right = (predictions == references).astype(np.float64)
    predictions = np.where(predictions < 0, classes, predictions)  # no answer is a class that is never right
    predicted_of, true_of = _class_sums(classes + 1, predictions), _class_sums(classes + 1, references)

    def score(weights: Floats) -> Floats:
        n, hits = weights.sum(1), weights @ right
        predicted, true = predicted_of(weights), true_of(weights)  # (B, C)
        covariance = hits * n - (predicted * true).sum(1)
        return ratio(covariance, np.sqrt((n**2 - (predicted**2).sum(1)) * (n**2 - (true**2).sum(1))))

    return score


# ---- regression metrics: values (N,)


def pearson(predictions: Floats, references: Floats) -> Scorer:
    """Linear correlation from weighted moments; 0 where one side is constant."""
    x, y = _standardised(predictions), _standardised(references)
    return lambda weights: _correlation(weights, np.broadcast_to(x, weights.shape), np.broadcast_to(y, weights.shape))


def spearman(predictions: Floats, references: Floats) -> Scorer:
    """Correlation of the ranks. Each resample is ranked again, and ties share their mean rank."""
    ranks_x, ranks_y = _ranks(predictions), _ranks(references)
    return lambda weights: _correlation(weights, ranks_x(weights), ranks_y(weights))


def mse(predictions: Floats, references: Floats) -> Scorer:
    """Mean squared error, in the label's unit squared; lower is better."""
    errors = (predictions - references) ** 2
    return lambda weights: ratio(weights @ errors, weights.sum(1))


# ---- by name

CLASS_METRICS: dict[str, Callable[[Labels, Labels, int], Scorer]] = {
    "accuracy": accuracy,
    "f1": f1,
    "precision": precision,
    "recall": recall,
    "f1_macro": f1_macro,
    "f1_micro": accuracy,
    "matthews": matthews,
}
POSITIVE_METRICS = ("f1", "precision", "recall")
"""Class metrics that are of one class, where one is named as the positive class."""
REGRESSION_METRICS: dict[str, Callable[[Floats, Floats], Scorer]] = {
    "pearson": pearson,
    "spearman": spearman,
    "mse": mse,
}
FACTS = {
    "matthews": MetricFacts(lowest=-1.0),
    "pearson": MetricFacts(lowest=-1.0),
    "spearman": MetricFacts(lowest=-1.0),
    "mse": UNBOUNDED_ERROR,
}
"""Metrics whose direction or range is not the usual one."""


@dataclass(frozen=True)
class WeightedScore(CorpusScore):
    """One metric of one set of predictions."""

    examples: int
    """N."""
    scorer: Scorer
    """The metric under row weights (B, N)."""

    def score(self) -> float:
        return float(self.scorer(np.ones((1, self.examples)))[0]) if self.examples else 0.0

    def resampled(self, weights: NDArray[Any]) -> Floats:
        return self.scorer(np.asarray(weights, np.float64))


def weighted_score(
    metric: str,
    predictions: NDArray[Any],
    references: NDArray[Any],
    classes: int | None = None,
    positive: int | None = None,
) -> WeightedScore:
    """One metric of predictions and references, both (N,).

    metric: a name in CLASS_METRICS (arrays of class numbers; a prediction of -1 is no answer) or REGRESSION_METRICS
        (arrays of values).
    classes: number of classes; by default as many as the arrays show. It decides whether "f1" is binary or macro.
    positive: the class that `POSITIVE_METRICS` are of, against all others; by default class 1 of two.
    Raises ValueError for an unknown metric or arrays of different lengths.
    """
    if metric not in CLASS_METRICS and metric not in REGRESSION_METRICS:
        names = ", ".join([*CLASS_METRICS, *REGRESSION_METRICS])
        raise ValueError(f"no weighted score for metric {metric!r}; there are: {names}")
    if predictions.shape != references.shape or predictions.ndim != 1:
        raise ValueError(
            f"predictions {predictions.shape} and references {references.shape} must be two flat arrays of one length"
        )
    count = len(references)
    if not count:
        return WeightedScore(0, lambda weights: np.zeros(len(weights)))
    if metric in REGRESSION_METRICS:
        x, y = predictions.astype(np.float64), references.astype(np.float64)
        return WeightedScore(count, REGRESSION_METRICS[metric](x, y))
    predicted, true = predictions.astype(np.int64), references.astype(np.int64)
    classes = max(classes or 0, int(max(predicted.max(), true.max())) + 1)
    if positive is not None and metric in POSITIVE_METRICS:
        predicted, true, classes = (predicted == positive).astype(np.int64), (true == positive).astype(np.int64), 2
    return WeightedScore(count, CLASS_METRICS[metric](predicted, true, classes))


# ---- shared parts


def _is_one(labels: Labels) -> Floats:
    return np.asarray(labels == 1, dtype=np.float64)


def _mean_of_classes(
    value: Callable[[Floats, Floats, Floats], Floats], predictions: Labels, references: Labels, classes: int
) -> Scorer:
    """The mean of value(hits, predicted, true), each (B, C), over the classes that a resample holds."""
    right = predictions == references
    hits_of = _class_sums(classes, predictions, counted=right)
    predicted_of, true_of = _class_sums(classes, predictions), _class_sums(classes, references)

    def score(weights: Floats) -> Floats:
        hits, predicted, true = hits_of(weights), predicted_of(weights), true_of(weights)
        return ratio(value(hits, predicted, true).sum(1), (predicted + true > 0).sum(1))

    return score


def _class_sums(classes: int, *labels: Labels, counted: NDArray[np.bool_] | None = None) -> Scorer:
    """Weights (B, N) -> for each class the weight of the rows that have it in any of the labels (N,): (B, C).

    counted (N,): the rows to count; by default all of them. Negative labels are of no class.
    """
    mask = np.ones(len(labels[0])) if counted is None else counted.astype(np.float64)

    @cache
    def one_hot() -> Floats:
        numbers = np.arange(classes)
        total: Floats = sum((np.asarray(each[:, None] == numbers, np.float64) for each in labels), np.zeros(()))
        return total * mask[:, None]  # (N, C)

    def sums(weights: Floats) -> Floats:
        if len(weights) == 1:  # the plain score needs no (N, C) matrix, which is large for many rows and classes
            known = [(each[each >= 0], (weights[0] * mask)[each >= 0]) for each in labels]
            return np.asarray(sum(np.bincount(each, of_rows, classes) for each, of_rows in known))[None]
        return np.asarray(weights @ one_hot(), dtype=np.float64)

    return sums


def _standardised(values: Floats) -> Floats:
    """Values (N,) around 0, at most 1 in size, so that moments do not cancel; zeros for a constant."""
    if np.ptp(values) == 0:
        return np.zeros_like(values)
    centred = values - values.mean()
    return np.asarray(centred / np.abs(centred).max(), dtype=np.float64)


def _correlation(weights: Floats, x: Floats, y: Floats) -> Floats:
    total = weights.sum(1, keepdims=True)
    x = x - ratio((weights * x).sum(1, keepdims=True), total)  # (B, N)
    y = y - ratio((weights * y).sum(1, keepdims=True), total)
    xx, yy = (weights * x * x).sum(1), (weights * y * y).sum(1)
    # A side that is constant in a resample leaves rounding noise instead of exactly 0.
    noise = 1e-24 * weights.sum(1)
    scale = np.where((xx > noise) & (yy > noise), np.sqrt(xx * yy), 0.0)
    return np.clip(ratio((weights * x * y).sum(1), scale), -1.0, 1.0)


def _ranks(values: Floats) -> Callable[[Floats], Floats]:
    """Weights (B, N) -> the rank (B, N) of each row in its resample, without sorting again.

    Copies of one value are neighbours in the sorted resample, so their mean rank is what comes before them plus half of
    them.
    """
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))

    def ranks(weights: Floats) -> Floats:
        copies = np.add.reduceat(weights[:, order], starts, axis=1)  # (B, distinct values)
        mean = np.cumsum(copies, axis=1) - (copies - 1) / 2
        return np.asarray(mean[:, group], dtype=np.float64)

    return ranks
