"""Candidates of a comparison: methods, each at its size and with the learning rates to try."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deltatune.core.budget import Budget
from deltatune.core.errors import DeltatuneError
from deltatune.core.method import Method
from deltatune.prompting.prompt_method import PromptMethod
from deltatune.prompting.zero_shot import as_prompt_method
from deltatune.tasks.tokenization import with_token_ids
from deltatune.training.session import Session

RATE_STEP = 3.0
"""Neighbouring learning rates of the search differ by this factor."""
EXTENSIONS = 2
"""How often a search of three or more rates is extended beyond its edge while the edge is best."""


@dataclass(frozen=True)
class Candidate:
    """One method of the comparison, at its size."""

    method: Method
    rates: tuple[float, ...]
    """Learning rates to try, ascending, around the recommended one; 0 for a method that trains nothing."""
    params: int
    """Trainable parameters without the head."""

    @property
    def text(self) -> str:
        """The method's text form, which identifies it in all files."""
        return repr(self.method)

    @property
    def possible_rates(self) -> tuple[float, ...]:
        """Every rate that the search can try: the planned ones, and the extensions on both sides."""
        if len(self.rates) < 3:
            return self.rates
        steps = range(1, EXTENSIONS + 1)
        below = [neighbour(self.rates[0], -i) for i in steps]
        above = [neighbour(self.rates[-1], i) for i in steps]
        return (*self.rates, *below, *above)

    @property
    def reference(self) -> bool:
        """Whether the method has no size that a budget could set."""
        return self.method.size is None


def neighbour(rate: float, steps: int) -> float:
    """The learning rate some steps of the search away, rounded to two digits."""
    return float(f"{rate * RATE_STEP**steps:.2g}")


def rates_around(middle: float, count: int) -> tuple[float, ...]:
    """`count` ascending rates around a recommended one, a step apart; an even count has one more below it."""
    first = -(count // 2)
    return tuple(neighbour(middle, first + i) for i in range(count))


def make_candidates(
    session: Session, methods: Sequence[str | Method], budget: Budget | None, rates: int
) -> tuple[list[Candidate], dict[str, str]]:
    """Candidates with `rates` learning rates each, and the reasons why other methods cannot run on this model."""
    sites = session.host.sites
    candidates: dict[str, Candidate] = {}
    problems: dict[str, str] = {}
    for text in methods:
        try:
            method = session.fit(as_prompt_method(text), budget.params if budget else None)
            trained: Method | None = method
            tried = rates_around(method.learning_rate, rates)
            if isinstance(method, PromptMethod):
                trained, tried = method.inner, tried if method.trains else (0.0,)
            params = with_token_ids(trained, session.tokenizer, session.task).count(sites) if trained else 0
            candidate = Candidate(method, tried, params)
        except DeltatuneError as error:
            problems[str(text)] = str(error)
            continue
        if candidate.text in candidates:
            problems[str(text)] = f"it is {candidate.text}, which is in the comparison already"
        candidates[candidate.text] = candidate
    return list(candidates.values()), problems
