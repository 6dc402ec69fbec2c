"""Scores from predictions and references, in numpy; equal to scikit-learn's and scipy's.


Every function takes two arrays of one length N and returns a float. Class metrics take class numbers, regression
metrics real values. A score that is undefined (one class only, constant values) is 0.0, the convention of the Matthews
coefficient, so that no NaN gets into a ranking.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Metric = Callable[[Array, Array], float]


def accuracy(predictions: Array, references: Array) -> float:
    """Share of rows whose predicted class is the reference."""
    return float(np.mean(predictions == references)) if len(references) else 0.0


def confusion(predictions: Array, references: Array) -> Array:
    """Counts (C, C), reference in the row and prediction in the column, over the classes seen in either."""
    classes, coded = np.unique(np.concatenate([references, predictions]), return_inverse=True)
    true, predicted = coded[: len(references)], coded[len(references) :]
    cells = np.bincount(true * len(classes) + predicted, minlength=len(classes) ** 2)
    return cells.reshape(len(classes), len(classes))


def f1(predictions: Array, references: Array) -> float:
    """F1 of class 1, the last of two labels."""
    hits = np.sum((predictions == 1) & (references == 1))
    found, there = np.sum(predictions == 1), np.sum(references == 1)
    return float(2 * hits / (found + there)) if found + there else 0.0


def f1_macro(predictions: Array, references: Array) -> float:
    """Mean over the classes seen of each class's F1: rare classes count as much as common ones."""
    table = confusion(predictions, references)
    if not table.size:
        return 0.0
    return float(np.mean(2 * np.diag(table) / (table.sum(0) + table.sum(1))))  # a class seen has a positive sum


def f1_micro(predictions: Array, references: Array) -> float:
    """F1 over all decisions together; with one label a row it equals accuracy."""
    return accuracy(predictions, references)


def matthews(predictions: Array, references: Array) -> float:
    """Matthews correlation, R_K for more than two classes (Gorodkin 2004, doi:10.1016/j.compbiolchem.2004.09.006)."""
    table = confusion(predictions, references).astype(np.float64)
    there, found, rows = table.sum(1), table.sum(0), table.sum()
    spread = (rows**2 - found @ found) * (rows**2 - there @ there)
    return float((np.trace(table) * rows - there @ found) / np.sqrt(spread)) if spread else 0.0


def pearson(predictions: Array, references: Array) -> float:
    """Linear correlation, -1 to 1."""
    if len(references) == 0 or np.ptp(predictions) == 0 or np.ptp(references) == 0:
        return 0.0  # a constant: no correlation, and what is left after taking the mean off would be rounding
    x, y = np.asarray(predictions, np.float64), np.asarray(references, np.float64)
    x, y = x - x.mean(), y - y.mean()
    return float(np.clip(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)), -1.0, 1.0))


def ranks(values: Array) -> Array:
    """Ranks from 1 to N (N,); equal values share the mean of their ranks."""
    _, coded, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    middle: Array = last - (counts - 1) / 2
    return middle[coded]


def spearman(predictions: Array, references: Array) -> float:
    """Correlation of the ranks, -1 to 1."""
    return pearson(ranks(predictions), ranks(references))


def mse(predictions: Array, references: Array) -> float:
    """Mean squared error, in the label's unit squared; lower is better."""
    return float(np.mean((predictions - references) ** 2)) if len(references) else 0.0


METRICS: dict[str, Metric] = {
    "accuracy": accuracy,
    "f1": f1,
    "f1_macro": f1_macro,
    "f1_micro": f1_micro,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
    "mse": mse,
}

CLASS_METRICS = ("accuracy", "f1", "f1_macro", "f1_micro", "matthews")
REGRESSION_METRICS = ("pearson", "spearman", "mse")
LOWER_IS_BETTER = frozenset({"mse", "loss", "perplexity", "bits_per_char", "bits_per_byte", "ter"})
