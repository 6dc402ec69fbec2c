"""What is compared: methods, each at its size and with the learning rates that are tried for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deltatune.core.budget import Budget, fit_budget
from deltatune.core.errors import DeltatuneError
from deltatune.core.host import Host
from deltatune.core.method import Method
from deltatune.core.registry import parse
from deltatune.tasks.task import Task
from deltatune.tasks.tokenization import worded

STEP = 3.0
"""Neighbouring rates of the search differ by this factor."""
EXTENSIONS = 2
"""How often a search of three or more rates goes on beyond its edge, as long as the edge is best."""


@dataclass(frozen=True)
class Contender:
    """One method of the comparison, at its size."""

    method: Method
    rates: tuple[float, ...]
    """Learning rates to try, ascending, around the recommended one."""
    params: int
    """Trainable parameters, the head left out."""

    @property
    def text(self) -> str:
        """The method's text form, by which it is known in all files."""
        return repr(self.method)

    @property
    def reach(self) -> tuple[float, ...]:
        """Every rate the search may come to: the planned ones, and the extensions on both sides."""
        if len(self.rates) < 3:
            return self.rates
        below, above = self.rates[0], self.rates[-1]
        more = [beyond(below, -i) for i in range(1, EXTENSIONS + 1)] + [
            beyond(above, i) for i in range(1, EXTENSIONS + 1)
        ]
        return (*self.rates, *more)

    @property
    def reference(self) -> bool:
        """Whether it has no size that a budget could set."""
        return self.method.size is None


def beyond(rate: float, steps: int) -> float:
    """The rate some steps of the search away, rounded to two digits."""
    return float(f"{rate * STEP**steps:.2g}")


def spread_rates(middle: float, count: int) -> tuple[float, ...]:
    """`count` rates around a recommended one, each STEP times the one before; an even count leans low."""
    first = -(count // 2)
    return tuple(beyond(middle, first + i) for i in range(count))


def contenders_of(
    host: Host, methods: Sequence[str | Method], budget: Budget | None, rates: int, tokenizer: Any, task: Task
) -> tuple[list[Contender], dict[str, str]]:
    """Methods at their sizes, and why each of the others cannot be compared on this model."""
    found: dict[str, Contender] = {}
    problems: dict[str, str] = {}
    for given in methods:
        try:
            method = worded(parse(given), tokenizer, task)
            if budget is not None:
                method = fit_budget(method, host.sites, budget.params)
            contender = Contender(method, spread_rates(method.learning_rate, rates), method.count(host.sites))
        except DeltatuneError as error:
            problems[str(given)] = str(error)
            continue
        if contender.text in found:
            problems[str(given)] = f"it is {contender.text}, which is in the comparison already"
        found[contender.text] = contender
    return list(found.values()), problems
