"""Candidates of a comparison: methods, each at its size and with the learning rates to try."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from deltatune.core.budget import Budget, check_sized, read_budget, split_budget
from deltatune.core.errors import DeltatuneError
from deltatune.core.method import Method
from deltatune.prompting.prompt_method import PromptMethod
from deltatune.prompting.zero_shot import as_prompt_method
from deltatune.tasks.tokenization import with_token_ids
from deltatune.training.learning_rates.recommended_rate import EXTENSIONS, neighbour, rates_around, recommended_rate
from deltatune.training.session import Session


@dataclass(frozen=True)
class Candidate:
    """One method of the comparison, at its size."""

    method: Method
    rates: tuple[float, ...]
    """Learning rates to try, ascending, around the recommended one; 0 for a method that trains nothing."""
    params: int
    """Trainable parameters without the head."""
    asked: str = ""
    """The method as the user wrote it; candidates that share it are sizes, of which validation rows choose one."""

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


def with_rates(candidates: Sequence[Candidate], steps: int) -> tuple[Candidate, ...]:
    """The same candidates with rates around the recommended one for so many steps; prompting methods keep theirs."""
    return tuple(
        candidate
        if isinstance(candidate.method, PromptMethod)
        else replace(candidate, rates=rates_around(recommended_rate(candidate.method, steps), len(candidate.rates)))
        for candidate in candidates
    )


def make_candidates(
    session: Session, methods: Sequence[str | Method], budget: Budget | None, rates: int
) -> tuple[list[Candidate], dict[str, str]]:
    """Candidates with `rates` learning rates each, and the reasons why other methods cannot run on this model.

    A text may have a budget of its own (`Houlsby()@3%`), and values to choose from (`Bottleneck(size=8|64|256)`), each
    of which becomes a candidate.
    """
    candidates: dict[str, Candidate] = {}
    problems: dict[str, str] = {}
    for asked in methods:
        name = asked if isinstance(asked, str) else repr(asked)
        try:
            found = [
                Candidate(method, tried, params, name)
                for method, tried, params in _sized(session, asked, budget, rates)
            ]
        except DeltatuneError as error:
            problems[name] = str(error)
            continue
        for candidate in found:
            if candidate.text in candidates:
                problems[name] = _named_twice(candidate, candidates[candidate.text].asked, budget)
            candidates[candidate.text] = candidate
    return list(candidates.values()), problems


def _named_twice(candidate: Candidate, earlier: str, budget: Budget | None) -> str:
    """Why a method cannot be in the comparison a second time."""
    if candidate.asked == earlier:
        return "it is named twice; leave one of them out"
    shared = "" if budget is None or candidate.reference else f" at the budget {budget.text}, which sets its size"
    remedy = ", or leave the budget out" if shared else ""
    return f"it is {candidate.text}{shared}, as is {earlier}; leave one of them out{remedy}"


def _sized(
    session: Session, asked: str | Method, budget: Budget | None, rates: int
) -> list[tuple[Method, tuple[float, ...], int]]:
    """The methods of one text at their sizes, each with its rates and its trainable parameters."""
    sites = session.host.sites
    text, own = split_budget(asked) if isinstance(asked, str) else (asked, None)
    limit = read_budget(own, sites) if own is not None else budget
    read = [as_prompt_method(choice) for choice in (choices(text) if isinstance(text, str) else [text])]
    chosen_by_hand = len({str(method.size) for method in read}) > 1  # sizes to choose from are not changed
    found = []
    for method in read:
        if own is not None:
            check_sized(method, own)
        fitted = session.fit(method, None if chosen_by_hand or limit is None else limit.params)
        trained: Method | None = fitted
        tried = rates_around(fitted.learning_rate, rates)
        if isinstance(fitted, PromptMethod):
            trained, tried = fitted.inner, tried if fitted.trains else (0.0,)
        params = with_token_ids(trained, session.tokenizer, session.task).count(sites) if trained else 0
        if chosen_by_hand and limit is not None and params > limit.params:
            raise DeltatuneError(
                f"{fitted!r} trains {params:,} parameters, more than the budget {limit.text} = {limit.params:,}; leave "
                "this size or the budget out"
            )
        found.append((fitted, tried, params))
    return found


MOST_CHOICES = 64
"""Methods that one text may stand for."""


def choices(text: str) -> list[str]:
    """The methods that a text stands for: `LoRA(r=4|8)` is `LoRA(r=4)` and `LoRA(r=8)`; others stand for themselves.

    Raises DeltatuneError for more than MOST_CHOICES.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return [text]  # the parser of methods says what is wrong
    places = [
        keyword
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if isinstance(keyword.value, ast.BinOp) and isinstance(keyword.value.op, ast.BitOr)
    ]
    if not places:
        return [text]
    values = [_values(place.value) for place in places]
    number = 1
    for each in values:
        number *= len(each)
    if number > MOST_CHOICES:
        raise DeltatuneError(f"{text} stands for {number} methods; give at most {MOST_CHOICES} values to choose from")
    found = []
    for combination in itertools.product(*values):
        for place, value in zip(places, combination, strict=True):
            place.value = value
        found.append(ast.unparse(tree))
    return list(dict.fromkeys(found))


def _values(node: ast.expr) -> list[ast.expr]:
    """The values of `a | b | c`."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return [*_values(node.left), *_values(node.right)]
    return [node]
