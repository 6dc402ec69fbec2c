"""Direction and range of every metric, collected from the files that define them. Nothing here imports torch."""

from __future__ import annotations

from deltatune.tasks.metrics import classification_and_regression, likelihood_scores
from deltatune.tasks.metrics.corpus_score import MetricFacts
from deltatune.tasks.metrics.generation import generation_metrics

FACTS: dict[str, MetricFacts] = {
    **classification_and_regression.FACTS,
    **likelihood_scores.FACTS,
    **generation_metrics.FACTS,
}
"""Metrics that are not listed lie between 0 and 1, and higher is better."""

LOWER_IS_BETTER = frozenset(name for name, facts in FACTS.items() if facts.lower_is_better)
"""Metrics of which a smaller value is a better one."""


def bounds(metric: str) -> tuple[float, float]:
    """The smallest and the largest value a metric can take."""
    facts = FACTS.get(metric, MetricFacts())
    return facts.lowest, facts.highest
