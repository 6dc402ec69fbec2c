"""What a search for the intrinsic dimension asks, and which dimensions and rates it tries for the answer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from deltatune.comparison.candidates import spread_rates
from deltatune.comparison.plan import Plan, make_plan
from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.core.method import Method
from deltatune.core.registry import parse, registry
from deltatune.data.splits import Data
from deltatune.tasks.auto_task import KINDS
from deltatune.tasks.metrics.classification_scores import LOWER_IS_BETTER

METHODS = ("DID", "SAID")
FIRST, FACTOR = 10, 4.0
"""The first dimension that is tried, and how much larger the next one is, until one reaches the target."""
FINE = 1.3
"""The answer is known to this factor: the smallest that reached the target over the largest that did not."""
BISECTIONS = math.ceil(math.log2(math.log(FACTOR) / math.log(FINE)))
"""So often the gap is halved on the log scale, from one step of the grid down to FINE."""


@dataclass(frozen=True)
class Question:
    """What is looked for."""

    method: str = "DID"
    """DID, or SAID with a λ for each layer."""
    fraction: float = 0.9
    """Share of full fine-tuning's score that must be reached; 0.9 is the d90 of the papers."""
    of: Literal["full", "gain"] = "full"
    """Of what it is a share: of full fine-tuning's score, or of what that gains over training the head alone."""
    largest: int | None = None
    """The largest dimension tried; by default 10,000, or all of the model's weights if they are fewer."""
    rates: int = 3
    """Learning rates tried at each dimension, until one reaches the target."""
    seeds: int = 1
    """Runs at the best rate, whose mean counts."""

    def __post_init__(self) -> None:
        problems = [
            f"{n} must be at least 1, not {v}" for n, v in (("rates", self.rates), ("seeds", self.seeds)) if v < 1
        ]
        if self.method not in METHODS:
            problems.append(f"the method is {' or '.join(METHODS)}, not {self.method!r}{nearest(self.method, METHODS)}")
        if not 0 < self.fraction <= 1:
            problems.append(f"the fraction is a share above 0 and at most 1, such as 0.9, not {self.fraction:g}")
        if self.of not in ("full", "gain"):
            problems.append(f"a share of full or of gain, not of {self.of!r}")
        if self.largest is not None and self.largest < 1:
            problems.append(f"the largest dimension must be at least 1, not {self.largest}")
        raise_all(problems)

    def at(self, dimension: int) -> Method:
        """The method with one dimension; the head alone for 0."""
        return parse("Probe()") if not dimension else registry()[self.method](dimension=dimension)


@dataclass(frozen=True)
class Point:
    """One method at its best rate."""

    method: str
    dimension: int | None
    """None for full fine-tuning."""
    score: float
    """Mean over seeds of the metric on the validation rows."""
    test: float
    """The same on the test rows; it decides nothing."""
    rate: float
    tried: tuple[tuple[float, float], ...]
    """(rate, score) of the first seed."""


def make_question(data: Data, question: Question, **options: Any) -> Plan:
    """The plan of a search: model, data and task, checked; `options` as for `make_plan`. Nothing is trained yet."""
    if KINDS[data.kind].answers in ("text", "words"):
        raise DeltatuneError(
            f"a dimension is sought between the head alone and full fine-tuning, but {data.task} needs no head; "
            "take data with classes, numbers, tags or spans"
        )
    plan = make_plan(
        data, methods=["Full()", "Probe()", question.at(1000)], budget=None, rates=question.rates,
        seeds=question.seeds, **options,
    )  # fmt: skip
    if plan.task.metric in LOWER_IS_BETTER:
        raise DeltatuneError(
            f"a share of {plan.task.metric} says nothing, as lower is better there; choose --metric pearson"
        )
    smallest, largest = span(plan, question)
    if smallest > largest:
        raise DeltatuneError(
            f"the largest dimension is {largest:,}, but {question.method} has at least {smallest:,} numbers here; "
            "raise it"
        )
    return plan


def span(plan: Plan, question: Question) -> tuple[int, int]:
    """The smallest dimension there is on this model, and the largest that is tried."""
    sites, method = plan.host.sites, question.at(1)
    return method.count(sites), min(question.largest or 10_000, method.limit(sites))


def grid(smallest: int, largest: int) -> list[int]:
    """Dimensions tried one after the other: even steps on a log scale, the largest at the end."""
    first = max(smallest, min(FIRST, largest))
    steps = math.ceil(math.log(largest / first, FACTOR)) if largest > first else 0
    found = [round(first * (largest / first) ** (i / max(steps, 1))) for i in range(steps + 1)]
    return list(dict.fromkeys(found))


def between(low: int, high: int) -> int | None:
    """The dimension to try next between one that fails and one that reaches; None when they are near enough."""
    if high - low <= 1 or (low and high / low <= FINE):
        return None
    return min(high - 1, max(low + 1, round(math.sqrt(max(low, 1) * high))))


def target_of(question: Question, full: float, head: float) -> float:
    """The score to be reached. Raises DeltatuneError where a share of a gain is asked, but nothing is gained."""
    if question.of == "full":
        return question.fraction * full
    if full <= head:
        raise DeltatuneError(
            f"full fine-tuning ({full:.3f}) gains nothing over the head alone ({head:.3f}) on the validation rows, so "
            "there is no gain to take a share of; train longer or on more rows, or leave out --of gain"
        )
    return head + question.fraction * (full - head)


def first_rates(method: Method, question: Question) -> list[float]:
    """The recommended rate first, then its neighbours."""
    return around(method.learning_rate, question.rates)


def around(best: float, count: int) -> list[float]:
    """As many rates around the best one, itself first: what was best at one dimension is mostly best at the next."""
    return sorted(spread_rates(best, count), key=lambda rate: (round(abs(math.log(rate / best)), 1), rate))
