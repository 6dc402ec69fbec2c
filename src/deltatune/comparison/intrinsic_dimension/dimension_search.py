"""How many numbers a task needs: the smallest random subspace that reaches a share of full fine-tuning's score.

Li et al. 2018, https://arxiv.org/abs/1804.08838; of language models Aghajanyan et al. 2020,
https://arxiv.org/abs/2012.13255. The head is trained beside the subspace and not counted, so dimension 0 is a probe.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deltatune.comparison.candidates import EXTENSIONS, Contender, beyond
from deltatune.comparison.intrinsic_dimension.dimension_config import (
    BISECTIONS,
    Point,
    Question,
    around,
    between,
    first_rates,
    grid,
    span,
    target_of,
)
from deltatune.comparison.plan import Cell, Plan
from deltatune.comparison.records import Records
from deltatune.comparison.run_comparison import Event, OnEvent
from deltatune.comparison.summary import versions
from deltatune.core.errors import DeltatuneError
from deltatune.core.registry import parse
from deltatune.training import predict, train

Record = dict[str, Any]
NAME = "candidate"


class Seeker:
    """Runs points and keeps them; finished runs are taken from the folder."""

    def __init__(self, plan: Plan, question: Question, on_event: OnEvent) -> None:
        self.plan, self.question, self.on_event = plan, question, on_event
        plan.out.mkdir(parents=True, exist_ok=True)
        self.records = Records(plan.out)
        self.points: list[Point] = []
        self.done, self.left = 0, 0
        self.spent: list[float] = []

    def tell(self, kind: Any, text: str, **detail: Any) -> None:
        """Report to whoever watches; `total` is the most runs there can still be."""
        seconds = statistics.mean(self.spent) * self.left if self.spent else None
        self.on_event(Event(kind, text, self.done, self.done + self.left, seconds, detail))

    def point(self, dimension: int | None, rates: Sequence[float], target: float, later: int) -> Point:
        """Try rates until the target is reached, going on beyond the edge; then the other seeds at the best rate.

        `later`: points that may still come.
        """
        method = parse("Full()") if dimension is None else self.question.at(dimension)
        contender = Contender(method, tuple(sorted(rates)), method.count(self.plan.host.sites))
        each = len(rates) + len(self.plan.seeds) - 1
        tried: dict[float, Record] = {}
        waiting, extended = list(rates), 0
        while waiting:
            self.left = len(waiting) + len(self.plan.seeds) - 1 + later * each
            rate = waiting.pop(0)
            tried[rate] = self.cell(contender, rate, self.plan.seeds[0])
            best = max(tried, key=lambda rate: self.score(tried[rate]))
            if self.score(tried[best]) >= target:
                break
            if not waiting and len(tried) >= 3 and extended < EXTENSIONS and best in (min(tried), max(tried)):
                waiting.append(beyond(best, 1 if best == max(tried) else -1))
                extended += 1
        if tried[best]["status"] != "ok":
            raise DeltatuneError(f"{contender.text} fails at every rate; with {best:g}: {tried[best]['error']}")
        runs = [tried[best]]
        for i, seed in enumerate(self.plan.seeds[1:], 1):
            self.left = len(self.plan.seeds) - i + later * each
            runs.append(self.cell(contender, best, seed))
        runs = [run for run in runs if run["status"] == "ok"]
        self.left = later * each
        found = Point(
            contender.text,
            dimension,
            statistics.mean(map(self.score, runs)),
            statistics.mean(run["scores"]["test"][self.plan.task.metric] for run in runs),
            best,
            tuple(sorted((rate, self.score(run)) for rate, run in tried.items() if run["status"] == "ok")),
        )
        self.points.append(found)
        return found

    def score(self, record: Record) -> float:
        """The metric on the validation rows; below all for a run that failed."""
        if record["status"] != "ok":
            return -math.inf
        return float(record["scores"]["validation"][self.plan.task.metric])

    def cell(self, contender: Contender, rate: float, seed: int) -> Record:
        """One training run, or what an earlier session stored of it. A rate at which training fails is a result too."""
        cell = Cell("search", contender, rate, seed)
        key, words = self.plan.key(cell), f"{contender.text}, rate {rate:g}, seed {seed}"
        known = self.records.get(key, adapter=False)
        if known is None:
            self.tell("cell_start", words)
            start = time.perf_counter()
            try:
                known = self.records.add(self._train(cell, key, words))
            except DeltatuneError as error:
                known = self.records.add(self._record(cell, key) | {"status": "failed", "error": str(error)})
            finally:
                if NAME in self.plan.host.adapters:
                    self.plan.host.detach(NAME)
            self.spent.append(time.perf_counter() - start)
        self.done, self.left = self.done + 1, self.left - 1
        self.tell("cell_done" if known["status"] == "ok" else "cell_failed", words, record=known)
        return known

    def _train(self, cell: Cell, key: str, words: str) -> Record:
        plan = self.plan
        adapter = plan.host.attach(NAME, cell.contender.method, seed=cell.seed, head=plan.make_head(cell.seed))
        settings = dataclasses.replace(plan.settings, learning_rate=cell.rate, seed=cell.seed)

        def on_step(step: int, total: int, loss: float, rate: float) -> None:
            self.tell("step", words, step=step, steps=total, loss=loss)

        outcome = train(
            plan.host, NAME, plan.task, plan.splits["train"], plan.splits["validation"], plan.tokenizer, settings,
            on_step=on_step,
        )  # fmt: skip
        test = plan.splits["test"]
        answers = predict(plan.host, NAME, plan.task, test, plan.tokenizer, precision=settings.precision)
        return self._record(cell, key) | {
            "params": adapter.count,
            "head_params": adapter.head_count,
            "train_seconds": outcome.seconds,
            "loss": outcome.history[-1][1],
            "scores": {"validation": outcome.evaluations[-1][1], "test": plan.task.score(answers, test.references)},
        }

    def _record(self, cell: Cell, key: str) -> Record:
        return {
            "cell": key,
            "stage": cell.stage,
            "status": "ok",
            "method": cell.contender.text,
            "learning_rate": cell.rate,
            "seed": cell.seed,
            "config": self.plan.identity(cell),
            "versions": versions(),
        }


@dataclass(frozen=True)
class Found:
    """What a search found."""

    full: Point
    head: Point
    points: tuple[Point, ...]
    """By dimension, the head alone first."""
    target: float
    dimension: int | None
    """The smallest that reached the target; None if none did."""
    below: int | None
    """The largest smaller one that was tried; it did not reach the target."""


def seek(plan: Plan, question: Question, on_event: OnEvent | None = None) -> Found:
    """Full fine-tuning, the head alone, a rising grid until the target is reached, then bisection on a log scale."""
    seeker = Seeker(plan, question, on_event or (lambda event: None))
    smallest, largest = span(plan, question)
    ahead = grid(smallest, largest)
    seeker.tell("start", plan.name)
    full = seeker.point(None, first_rates(parse("Full()"), question), math.inf, 1 + len(ahead) + BISECTIONS)
    head = seeker.point(0, first_rates(question.at(0), question), math.inf, len(ahead) + BISECTIONS)
    target = target_of(question, full.score, head.score)
    low, high = 0, (0 if head.score >= target else None)
    rates = first_rates(question.at(smallest), question)
    while high is None and ahead:
        dimension = ahead.pop(0)
        point = seeker.point(dimension, rates, target, len(ahead) + BISECTIONS)
        rates = around(point.rate, question.rates)
        low, high = (low, dimension) if point.score >= target else (dimension, None)
    for later in reversed(range(BISECTIONS * 2)):
        middle = between(max(low, smallest - 1), high) if high else None
        if middle is None:
            break
        point = seeker.point(middle, rates, target, later // 2)
        rates = around(point.rate, question.rates)
        low, high = (low, middle) if point.score >= target else (middle, high)
    points = sorted((p for p in seeker.points if p.dimension is not None), key=lambda p: p.dimension or 0)
    return Found(full, head, tuple(points), target, high, None if high == 0 else low)
