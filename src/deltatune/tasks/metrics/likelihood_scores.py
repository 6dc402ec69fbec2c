"""Metrics of a language model's likelihood: perplexity, loss, and bits per character or byte."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from deltatune.tasks.metrics.corpus_score import UNBOUNDED_ERROR, AdditiveScore, Floats, MetricFacts, ratio

LARGEST_EXPONENT = 700.0
"""Beyond it, exp overflows a float."""


def perplexity(loss: float) -> float:
    """Perplexity of a mean negative log-likelihood in nats."""
    return float(np.exp(min(loss, LARGEST_EXPONENT)))


def _loss(sums: Floats) -> Floats:
    """(..., nats, units) -> nats per unit."""
    return ratio(sums[..., 0], sums[..., 1])


def _perplexity(sums: Floats) -> Floats:
    return np.asarray(np.exp(np.minimum(_loss(sums), LARGEST_EXPONENT)))


def _bits(sums: Floats) -> Floats:
    return np.asarray(_loss(sums) / np.log(2))


LIKELIHOOD_METRICS: dict[str, tuple[str, Callable[[Floats], Floats]]] = {
    "perplexity": ("tokens", _perplexity),
    "loss": ("tokens", _loss),
    "bits_per_char": ("chars", _bits),
    "bits_per_byte": ("bytes", _bits),
}
"""The unit that each metric is a mean over, and its value from (nats, units)."""

FACTS: dict[str, MetricFacts] = {name: UNBOUNDED_ERROR for name in (*LIKELIHOOD_METRICS, "pair_loss")}
"""Lower is better for all of them. pair_loss is the loss of next-sentence prediction."""


def likelihood_scores(answers: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, AdditiveScore]:
    """The named metrics of rows that have `nll` (nats) and their number of `tokens`, `chars` or `bytes`."""
    scores = {}
    for name in names:
        unit, value = LIKELIHOOD_METRICS[name]
        sums = np.array([[answer["nll"], answer[unit]] for answer in answers], np.float64).reshape(-1, 2)
        scores[name] = AdditiveScore(sums, value)
    return scores
