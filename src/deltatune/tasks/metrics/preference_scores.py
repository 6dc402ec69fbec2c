"""Metrics of preference pairs, and their direction and range."""

from __future__ import annotations

import math

from deltatune.tasks.metrics.corpus_score import UNBOUNDED_ERROR, MetricFacts

PREFERENCE_METRICS = ("accuracy", "reward_margin", "preference_loss")
"""The share of pairs whose chosen answer has the higher reward, the mean difference of rewards, the mean loss."""

FACTS: dict[str, MetricFacts] = {
    "reward_margin": MetricFacts(lowest=-math.inf, highest=math.inf),
    "preference_loss": UNBOUNDED_ERROR,
}
