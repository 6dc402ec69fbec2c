"""Training sets of iPET's next generations: unlabelled rows with the classes that other models give them.

Schick and Schütze 2021, https://arxiv.org/abs/2001.07676, section 3.4
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deltatune.tasks.classification import softmax

ZERO_SHOT_ROWS = 10
"""Rows of the first set where no row is labelled, over all classes."""
TINY = 1e-12
"""Confidence that every row has at least, so that it can be drawn."""

Labelled = list[tuple[int, int]]
"""(number of the row, number of its class)."""


def added_rows(labelled: Sequence[int], scale: float, generation: int) -> list[int]:
    """How many rows of each class are added to the labelled ones for generation 1, 2, ...

    The sets grow by `scale` from one generation to the next with the proportions of `labelled`, the number of labelled
    rows of each class: n · scale^g rows, n of them the labelled ones. Without labelled rows the first set has ten, the
    same number of each class, one at least.
    """
    if any(labelled):
        return [int(count * (scale**generation - 1)) for count in labelled]
    each = max(1, ZERO_SHOT_ROWS // len(labelled))
    return [int(each * scale ** (generation - 1))] * len(labelled)


def labelled_by(
    others: Sequence[NDArray[Any]],
    weights: Sequence[float],
    counts: Sequence[int],
    share: float,
    generator: torch.Generator,
    most_likely: int = 0,
) -> Labelled:
    """Rows for one model, labelled by a random `share` of the `others`, by their mean scores (N, C).

    Of each class so many rows as `counts` says are drawn with a chance in proportion to the ensemble's confidence. With
    `most_likely`, they are drawn from the so many rows that are the most likely of the class, whatever their own most
    likely class is; so are those of a class that the ensemble gives to no row. Where a class has fewer rows than it
    needs, each is taken as often as all can be, and only the rest is drawn.
    """
    number = max(1, round(share * len(others)))
    members = torch.randperm(len(others), generator=generator)[:number].tolist()
    probabilities = softmax(mean_scores([others[i] for i in members], [weights[i] for i in members]))
    predicted = probabilities.argmax(1)
    rows: Labelled = []
    for number_of_class, count in enumerate(counts):
        candidates = np.flatnonzero(predicted == number_of_class)
        if most_likely or not len(candidates):
            best_first = np.argsort(-probabilities[:, number_of_class], kind="stable")
            candidates = best_first[: most_likely or count]
        drawn = _drawn(candidates, probabilities[candidates, number_of_class], count, generator)
        rows += [(row, number_of_class) for row in drawn]
    return rows


def _drawn(candidates: NDArray[Any], confidence: NDArray[Any], count: int, generator: torch.Generator) -> list[int]:
    """So many candidates, in proportion to their confidence."""
    if not count:
        return []
    whole, rest = divmod(count, len(candidates))
    chosen = list(candidates) * whole
    if rest:
        chances = torch.from_numpy(confidence.astype(np.float64) + TINY)
        chosen += list(candidates[torch.multinomial(chances, rest, generator=generator).numpy()])
    return [int(row) for row in chosen]


def mean_scores(scores: Sequence[NDArray[Any]], weights: Sequence[float]) -> NDArray[Any]:
    """The mean of models' scores (N, C), weighted; without any weight above 0, all weigh the same."""
    mean: NDArray[Any] = np.average(
        np.stack(scores).astype(np.float64), axis=0, weights=weights if any(weights) else None
    )
    return mean
