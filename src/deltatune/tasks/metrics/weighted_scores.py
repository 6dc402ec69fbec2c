"""Scores under example weights.

A bootstrap resample of n examples is a vector of n counts, so every score here is computed from counts instead of from
copied rows: one matrix product gives a score for each of B resamples. With all weights 1 it is the plain score.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Scorer = Callable[[Floats], Floats]
"""Example weights (B, n) -> one score per row of weights (B,)."""


def accuracy(predictions: NDArray[np.int64], references: NDArray[np.int64], classes: int) -> Scorer:
    """Share of the weight that lies on right answers."""
    right = (predictions == references).astype(np.float64)
    return lambda weights: _ratio(weights @ right, weights.sum(1))


def f1(predictions: NDArray[np.int64], references: NDArray[np.int64], classes: int) -> Scorer:
    """F1 of class 1 for up to two classes, else `f1_macro`: what a task means by "f1"."""
    if classes > 2:
        return f1_macro(predictions, references, classes)
    predicted, true = (predictions == 1).astype(np.float64), (references == 1).astype(np.float64)
    return lambda weights: _ratio(2 * (weights @ (predicted * true)), weights @ (predicted + true))


def f1_macro(predictions: NDArray[np.int64], references: NDArray[np.int64], classes: int) -> Scorer:
    """Mean F1 over the classes that a resample holds, in predictions or references."""
    predicted, true = _one_hot(predictions, classes), _one_hot(references, classes)

    def score(weights: Floats) -> Floats:
        hits, total = weights @ (predicted * true), weights @ (predicted + true)  # (B, C)
        return _ratio(_ratio(2 * hits, total).sum(1), (total > 0).sum(1).astype(np.float64))

    return score


def matthews(predictions: NDArray[np.int64], references: NDArray[np.int64], classes: int) -> Scorer:
    """Matthews correlation for any number of classes (Gorodkin 2004); 0 where one side is constant."""
    predicted, true = _one_hot(predictions, classes), _one_hot(references, classes)
    right = (predictions == references).astype(np.float64)

    def score(weights: Floats) -> Floats:
        n, hits = weights.sum(1), weights @ right
        p, t = weights @ predicted, weights @ true  # (B, C)
        covariance = hits * n - (p * t).sum(1)
        return _ratio(covariance, np.sqrt((n**2 - (p**2).sum(1)) * (n**2 - (t**2).sum(1))))

    return score


def pearson(predictions: Floats, references: Floats) -> Scorer:
    """Linear correlation from weighted moments; 0 where one side is constant."""
    # Centring first keeps the difference of large moments from cancelling.
    x, y = predictions - predictions.mean(), references - references.mean()

    def score(weights: Floats) -> Floats:
        return _correlation(weights, np.broadcast_to(x, weights.shape), np.broadcast_to(y, weights.shape))

    return score


def spearman(predictions: Floats, references: Floats) -> Scorer:
    """Correlation of ranks; every resample is ranked anew, ties share their mean rank."""
    rank_x, rank_y = _ranker(predictions), _ranker(references)
    return lambda weights: _correlation(weights, rank_x(weights), rank_y(weights))


def mse(predictions: Floats, references: Floats) -> Scorer:
    """Mean squared error, lower is better."""
    errors = (predictions - references) ** 2
    return lambda weights: _ratio(weights @ errors, weights.sum(1))


# With one label a row, micro F1 is accuracy.
CLASS_SCORES = {"accuracy": accuracy, "f1": f1, "f1_macro": f1_macro, "f1_micro": accuracy, "matthews": matthews}
VALUE_SCORES = {"pearson": pearson, "spearman": spearman, "mse": mse}


def scorer(metric: str, predictions: NDArray[np.generic], references: NDArray[np.generic], classes: int) -> Scorer:
    """The weighted score of one set of predictions.

    metric: a name in CLASS_SCORES (arrays (n,) of class numbers, `classes` of them) or VALUE_SCORES (arrays (n,) of
    numbers).
    Raises ValueError for an unknown metric or arrays of different lengths.
    """
    if metric not in CLASS_SCORES and metric not in VALUE_SCORES:
        raise ValueError(
            f"no weighted score for metric {metric!r}; there are: {', '.join([*CLASS_SCORES, *VALUE_SCORES])}"
        )
    if predictions.shape != references.shape or predictions.ndim != 1:
        raise ValueError(
            f"predictions {predictions.shape} and references {references.shape} must be two flat arrays of one length"
        )
    if metric in CLASS_SCORES:
        return CLASS_SCORES[metric](predictions.astype(np.int64), references.astype(np.int64), classes)
    return VALUE_SCORES[metric](predictions.astype(np.float64), references.astype(np.float64))


def _one_hot(labels: NDArray[np.int64], classes: int) -> Floats:
    return np.asarray(labels[:, None] == np.arange(classes), dtype=np.float64)  # (n, C)


def _ratio(top: Floats, bottom: Floats) -> Floats:
    """top / bottom, and 0 where bottom is not positive: an undefined score counts as no skill."""
    return np.asarray(np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0), dtype=np.float64)


def _correlation(weights: Floats, x: Floats, y: Floats) -> Floats:
    total = weights.sum(1, keepdims=True)
    x = x - (weights * x).sum(1, keepdims=True) / total  # (B, n)
    y = y - (weights * y).sum(1, keepdims=True) / total
    xx, yy = (weights * x * x).sum(1), (weights * y * y).sum(1)
    # A constant side leaves rounding noise instead of exactly 0.
    noise = 1e-24 * weights.sum(1)
    bottom = np.where((xx > noise) & (yy > noise), np.sqrt(xx * yy), 0.0)
    return np.clip(_ratio((weights * x * y).sum(1), bottom), -1.0, 1.0)


def _ranker(values: Floats) -> Callable[[Floats], Floats]:
    """Weights (B, n) -> the rank (B, n) each example has in its resample, without sorting again.

    Copies of one value stand together in the sorted resample, so their mean rank is what came before plus half of them.
    """
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))

    def ranks(weights: Floats) -> Floats:
        copies = np.add.reduceat(weights[:, order], starts, axis=1)  # (B, distinct values)
        mean = np.cumsum(copies, axis=1) - (copies - 1) / 2
        return np.asarray(mean[:, group], dtype=np.float64)

    return ranks
