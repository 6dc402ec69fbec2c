"""Trials of demonstrations: sets and orders of them, scored one by one on validation rows.

Lu et al. 2022, https://arxiv.org/abs/2104.08786: the same demonstrations may be near chance in one order only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from deltatune.core.delta import generator_for
from deltatune.prompting.in_context.content_free import with_sets
from deltatune.tasks.classification import softmax
from deltatune.tasks.task import Row
from deltatune.training.session import Session


class Trial(NamedTuple):
    """One set of demonstrations in one order."""

    name: str
    shown: tuple[Any, ...]
    score: float
    """The primary metric."""
    likelihood: float
    """Mean log-probability of the right classes or texts, which decides between equal scores."""


def some_rows(rows: Sequence[Row], number: int, seed: int) -> list[Row]:
    """At most this many of the rows, drawn by the seed."""
    order = torch.randperm(len(rows), generator=generator_for(seed, "demonstrations.scored")).tolist()
    return [rows[i] for i in order[:number]]


def random_orders(shown: tuple[Any, ...], number: int, seed: int, of_set: int) -> list[tuple[Any, ...]]:
    """At most `number` different orders, as they are first; few demonstrations have few."""
    generator = generator_for(seed, f"demonstrations.orders.{of_set}")
    orders = {shown: None}
    for _ in range(20 * number):
        if len(orders) == number:
            break
        orders[tuple(shown[i] for i in torch.randperm(len(shown), generator=generator).tolist())] = None
    return list(orders)


def trial(session: Session, name: str, shown: tuple[str, ...], rows: Sequence[Row], calibrated: bool) -> Trial:
    """The score of one set of demonstrations on these labelled rows."""
    own = with_sets(session, [shown], calibrated)
    encoded = own.encode(rows)
    answers = np.asarray(own.predict(encoded), np.float64)  # (N, C)
    right = np.log(softmax(answers)[np.arange(len(answers)), encoded.references] + 1e-12)
    return Trial(name, shown, own.task.primary_score(answers, encoded.references).score(), float(right.mean()))


def best_trial(trials: Sequence[Trial]) -> Trial:
    """The trial with the best score, of equal ones that with the best likelihood."""
    return max(trials, key=lambda each: (each.score, each.likelihood))


def spread_note(trials: Sequence[Trial], rows: int, metric: str) -> str:
    """How far the scores of sets and orders are apart."""
    scores = [each.score for each in trials]
    return (
        f"{metric} of {len(trials)} sets or orders of demonstrations on {rows} validation rows: {min(scores):.3f} to "
        f"{max(scores):.3f}, standard deviation {float(np.std(scores)):.3f}"
    )
