"""Configuration of a search for the intrinsic dimension, and the dimensions and learning rates that it tries."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from deltatune.comparison.plans.make_plan import count_problems, make_plan
from deltatune.comparison.plans.plan import Plan
from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.core.method import Method
from deltatune.core.registry import parse, registry
from deltatune.data import Data
from deltatune.tasks.metrics.metric_facts import bounds, lower_is_better
from deltatune.tasks.task_registry import DATA_TASKS
from deltatune.training.learning_rates.recommended_rate import rates_around

METHODS = ("DID", "SAID")
FIRST, FACTOR = 10, 4.0
"""The first dimension to try, and the factor to the next one, until one reaches the target."""
FINE = 1.3
"""The result is exact to this factor: the smallest dimension that reached the target over the largest that did not."""
BISECTIONS = math.ceil(math.log2(math.log(FACTOR) / math.log(FINE)))
"""Halvings of the gap on the log scale that lead from one step of the grid down to FINE."""

ONE_SIDED = 1.645
"""Standard deviations that a normal number is above in 5 % of all cases."""


@dataclass(frozen=True)
class DimensionConfig:
    """The target of a search, its method and its limits."""

    method: str = "DID"
    """DID, or SAID, which has a scale λ for each layer."""
    fraction: float = 0.9
    """Share of full fine-tuning's score that must be reached; 0.9 is the papers' d90."""
    of: Literal["full", "gain"] = "full"
    """What the share refers to: full fine-tuning's score, or its gain over training the head alone."""
    largest: int | None = None
    """Largest dimension to try; by default 10,000, or all of the model's weights if they are fewer."""
    rates: int = 3
    """Learning rates to try at each dimension, until one reaches the target."""
    seeds: int = 1
    """Runs at the best rate; their mean score counts."""

    def __post_init__(self) -> None:
        problems = count_problems(rates=self.rates, seeds=self.seeds)
        if self.method not in METHODS:
            problems.append(f"the method is {' or '.join(METHODS)}, not {self.method!r}{nearest(self.method, METHODS)}")
        if not 0 < self.fraction <= 1:
            problems.append(f"the fraction is a share above 0 and at most 1, such as 0.9, not {self.fraction:g}")
        if self.of not in ("full", "gain"):
            problems.append(f"the share is of full or of gain, not of {self.of!r}")
        if self.largest is not None and self.largest < 1:
            problems.append(f"the largest dimension must be at least 1, not {self.largest}")
        raise_all(problems)

    def at(self, dimension: int) -> Method:
        """The method with this dimension; the head alone for 0."""
        return parse("Probe()") if not dimension else registry()[self.method](dimension=dimension)


@dataclass(frozen=True)
class DimensionPoint:
    """One method at its best rate."""

    method: str
    dimension: int | None
    """None for full fine-tuning."""
    score: float
    """Metric on the validation rows, the mean over seeds."""
    test: float
    """The same on the test rows; it does not influence the search."""
    rate: float
    tried: tuple[tuple[float, float], ...]
    """(rate, score) at the first seed."""


def plan_search(data: Data, config: DimensionConfig, **options: Any) -> Plan:
    """The plan of a search: model, data and task, checked; `options` as for `make_plan`. Nothing is trained yet.

    Raises DeltatuneError for tasks and metrics that a search makes no sense for, and for a range without dimensions.
    """
    if DATA_TASKS[data.kind].answers in ("text", "likelihood", "noise"):
        raise DeltatuneError(
            f"the search compares dimensions with training the head alone, but {data.task} needs no head; "
            "use data with classes, numbers, tags or spans"
        )
    plan = make_plan(
        data, methods=["Full()", "Probe()", config.at(1000)], budget=None, rates=config.rates,
        seeds=config.seeds, **options,
    )  # fmt: skip
    metric = plan.session.task.metric
    if lower_is_better(metric):
        raise DeltatuneError(f"a share of {metric} is not meaningful, because lower is better; choose --metric pearson")
    smallest, largest = dimension_range(plan, config)
    if smallest > largest:
        raise DeltatuneError(
            f"the largest dimension is {largest:,}, but {config.method} has at least {smallest:,} parameters on this "
            "model; raise --largest"
        )
    return plan


def dimension_range(plan: Plan, config: DimensionConfig) -> tuple[int, int]:
    """The smallest dimension possible on this model, and the largest to try."""
    sites, method = plan.session.host.sites, config.at(1)
    return method.count(sites), min(config.largest or 10_000, method.limit(sites))


def grid(smallest: int, largest: int) -> list[int]:
    """Dimensions to try one after the other: even steps on a log scale, the largest at the end."""
    first = max(smallest, min(FIRST, largest))
    steps = math.ceil(math.log(largest / first, FACTOR)) if largest > first else 0
    dimensions = [round(first * (largest / first) ** (i / max(steps, 1))) for i in range(steps + 1)]
    return list(dict.fromkeys(dimensions))


def midpoint(low: int, high: int) -> int | None:
    """The dimension to try between one below the target and one that reaches it; None if they are close enough."""
    if high - low <= 1 or (low and high / low <= FINE):
        return None
    return min(high - 1, max(low + 1, round(math.sqrt(max(low, 1) * high))))


def target_of(config: DimensionConfig, full: float, head: float) -> float:
    """The score to reach."""
    return config.fraction * full if config.of == "full" else head + config.fraction * (full - head)


def noise_of(metric: str, full: float, head: float, rows: int) -> float:
    """What the scores of two models with these scores may differ by on so many rows, were the models equally good.

    The one-sided 95 % bound for two independent samples: of metrics between 0 and 1 the variance of a row is at most
    p(1 − p), of correlations it is about (1 − r²)². The same rows score both, so that the noise is rather smaller.
    """
    spread = [(1 - score**2) ** 2 if bounds(metric)[0] < 0 else score * (1 - score) for score in (full, head)]
    return ONE_SIDED * math.sqrt(max(0.0, sum(spread)) / rows)


def refusal(metric: str, full: float, head: float, rows: int) -> str | None:
    """Why no dimension can be concluded from these validation scores: full fine-tuning is not above the head alone."""
    noise = noise_of(metric, full, head, rows)
    if full > head + noise:
        return None
    how = (
        f"below training the head alone ({head:.3f})" if full < head else
        f"not above training the head alone ({head:.3f}) by more than the noise of so many rows ({noise:.3f})"
    )  # fmt: skip
    return (
        f"no dimension is concluded: full fine-tuning scores {full:.3f} {metric} on the {rows:,} validation rows, "
        f"{how}, so a share of its score says nothing about the model's weights; train longer, on more rows or at more "
        "learning rates, or give more validation rows; where the head is as good then too, Probe() is enough"
    )


def first_rates(method: Method, config: DimensionConfig) -> list[float]:
    """The recommended rate first, then its neighbours."""
    return by_distance(method.learning_rate, config.rates)


def by_distance(best: float, count: int) -> list[float]:
    """`count` rates around the best one, the nearest first: it is often the best at the next dimension too."""
    return sorted(rates_around(best, count), key=lambda rate: (round(abs(math.log(rate / best)), 1), rate))
