"""Decision of a comparison: which methods are told apart, after each look at the test scores so far."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from deltatune.comparison.plans.plan import Plan
from deltatune.comparison.results.records import Records
from deltatune.comparison.statistics.verdicts import PairVerdict, decide, undecided_methods
from deltatune.comparison.works.works import Record
from deltatune.prompting.prompt_method import PromptMethod
from deltatune.tasks.metrics.corpus_score import Scorer

ALPHA = 0.05
"""Probability that any of the verdicts of a comparison is wrong."""
Stopped = Literal["", "decided", "seeds", "time"]


@dataclass(frozen=True)
class Decision:
    """The verdicts of the looks so far."""

    looks: tuple[tuple[PairVerdict, ...], ...] = ()
    """All pairs, by look."""
    margin: float | None = None
    stopped: Stopped = ""
    """Why no runs were added any more: all pairs are decided, every method has all its runs, or the time is over."""

    @property
    def pairs(self) -> tuple[PairVerdict, ...]:
        """What is known of every pair."""
        return self.looks[-1] if self.looks else ()

    def open_methods(self) -> set[str]:
        """Methods of pairs that are not decided."""
        return undecided_methods(self.pairs)

    def ended(self, stopped: Stopped) -> Decision:
        """The same decision, with the reason why it is the last."""
        return dataclasses.replace(self, stopped=stopped)

    def sentence(self) -> str:
        """How many pairs are decided, and why no more are."""
        kinds = [pair.verdict for pair in self.pairs]
        if not kinds:
            return "There is nothing to compare."
        apart, equal = sum(kind in ("better", "worse") for kind in kinds), kinds.count("equal")
        left = len(kinds) - apart - equal
        parts = [f"{apart} of {len(kinds)} pairs of methods are told apart"]
        if equal:
            parts.append(f"{equal} {'is' if equal == 1 else 'are'} equal within {self.margin:g}")
        why = {"time": " when the time was over", "seeds": " after all planned runs"}.get(self.stopped, "")
        if left:
            parts.append(f"{left} {'is' if left == 1 else 'are'} undecided{why}")
        text = ", ".join(parts)
        return f"{text[:1].upper()}{text[1:]}."

    def to_json(self) -> dict[str, Any]:
        """As plain data, without the pairs."""
        return {
            "margin": self.margin,
            "alpha": ALPHA,
            "looks": len(self.looks),
            "stopped": self.stopped,
            "sentence": self.sentence(),
        }


class RunScorers:
    """Scores of tested runs on resampled test rows; the stored answers of each run are read once."""

    def __init__(self, plan: Plan, records: Records) -> None:
        self.plan, self.records = plan, records
        self._known: dict[str, Scorer] = {}
        """By the key of the record."""

    def of(self, tested: Mapping[str, Sequence[Record]]) -> dict[str, list[Scorer]]:
        """By method, a Scorer of each run."""
        return {text: [self._scorer(record["cell"]) for record in runs] for text, runs in tested.items()}

    def draws(self, tested: Mapping[str, Sequence[Record]]) -> dict[str, list[object]] | None:
        """By method, the draw of training rows of each run; None where nothing is drawn."""
        return {text: [run.get("draw") for run in runs] for text, runs in tested.items()} if self.plan.draws else None

    def _scorer(self, key: str) -> Scorer:
        if key not in self._known:
            references = self.plan.splits["test"].references
            score = self.plan.session.task.primary_score(self.records.answers(key), references)
            self._known[key] = score.resampled
        return self._known[key]


def runs_by_method(finals: Mapping[str, Sequence[Record]]) -> dict[str, Sequence[Record]]:
    """Tested runs by the text of each method's chosen size, from those by the method as the user wrote it."""
    return {runs[0]["method"]: runs for runs in finals.values() if runs}


def decide_pairs(
    plan: Plan, finals: Mapping[str, Sequence[Record]], scorers: RunScorers, earlier: Decision
) -> Decision:
    """One more look: verdicts on the tested runs, by the text of the chosen size of each method."""
    tested = runs_by_method(finals)
    if len(tested) < 2:
        return Decision(looks=(*earlier.looks, ()), margin=plan.margin)
    pairs = decide(
        plan.session.task.metric,
        scorers.of(tested),
        plan.splits["test"].examples,
        look=len(earlier.looks) + 1,
        earlier=[pair for look in earlier.looks for pair in look],
        margin=plan.margin,
        alpha=ALPHA,
        clusters=scorers.draws(tested),
        fixed=fixed_methods(plan),
    )
    return Decision(looks=(*earlier.looks, tuple(pairs)), margin=plan.margin)


def fixed_methods(plan: Plan) -> list[str]:
    """Methods that give one result for all seeds and draws of rows."""
    return [candidate.text for candidate in plan.candidates if is_fixed(candidate.method)]


def is_fixed(method: object) -> bool:
    """Whether a method gives one result for all seeds and draws of rows."""
    return isinstance(method, PromptMethod) and not method.draws
