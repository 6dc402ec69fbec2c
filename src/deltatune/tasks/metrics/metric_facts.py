"""Direction and range of every metric, collected from the files that define them.

Nothing here imports torch, and numpy only when a metric is looked up: the command line starts without both.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deltatune.tasks.metrics.corpus_score import MetricFacts


@cache
def listed_facts() -> dict[str, MetricFacts]:
    """Facts by metric. Metrics that are not listed lie between 0 and 1, and higher is better."""
    from deltatune.tasks.metrics import classification_and_regression, likelihood_scores, preference_scores
    from deltatune.tasks.metrics.generation import generation_metrics

    files = (classification_and_regression, likelihood_scores, preference_scores, generation_metrics)
    return {name: facts for file in files for name, facts in file.FACTS.items()}


def lower_is_better(metric: str) -> bool:
    """Whether a smaller value of the metric is a better one."""
    return metric in listed_facts() and listed_facts()[metric].lower_is_better


def bounds(metric: str) -> tuple[float, float]:
    """The smallest and the largest value a metric can take."""
    facts = listed_facts().get(metric)
    return (0.0, 1.0) if facts is None else (facts.lowest, facts.highest)
