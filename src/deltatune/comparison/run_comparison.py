"""Run a plan cell by cell: a rate search on the validation rows, then the chosen rate's runs on the test rows, once."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from deltatune.comparison.candidates import Contender
from deltatune.comparison.costs import costs_of
from deltatune.comparison.lr_search import Search
from deltatune.comparison.plan import Cell, Plan
from deltatune.comparison.records import Records, write_summary
from deltatune.comparison.report.page import write_report
from deltatune.comparison.summary import summarise, versions
from deltatune.tasks.metrics.classification_scores import LOWER_IS_BETTER
from deltatune.tasks.tokenization import tokenizer_fingerprint
from deltatune.training import predict, train

Record = dict[str, Any]
NAME = "candidate"
TESTED = "-test"
"""Behind the key of a cell: its adapter on the test rows."""


@dataclass(frozen=True)
class Event:
    """What a comparison tells while it runs."""

    kind: Literal["start", "cell_start", "step", "cell_done", "cell_failed", "done"]
    text: str
    """The cell in words: method, rate, seed."""
    done: int
    """Cells finished."""
    total: int
    seconds_left: float | None
    """Estimate; None before the first cell is finished."""
    detail: dict[str, Any] = field(default_factory=dict)
    """`step`, `steps`, `loss` of a step; the record of a finished cell; `next` cell in words."""


OnEvent = Callable[[Event], None]


def run(plan: Plan, on_event: OnEvent | None = None) -> dict[str, Any]:
    """Do what is left of a plan and return its summary; `summary.json` and `report.html` lie in its folder.

    Finished cells are taken from the folder, so an interrupted comparison goes on where it stopped. A cell that fails
    is recorded and does not end the run.
    """
    plan.out.mkdir(parents=True, exist_ok=True)
    runner = _Runner(plan, Records(plan.out), on_event or (lambda event: None))
    started = time.perf_counter()
    runner.tell("start", plan.name)
    finals = {contender.text: runner.contender(contender) for contender in plan.contenders}
    elapsed = runner.earlier + time.perf_counter() - started
    summary = summarise(plan, finals, runner.records, runner.searches, runner.failed, elapsed)
    write_summary(plan.out / "summary.json", summary)
    write_report(summary, plan.out / "report.html")
    runner.tell("done", plan.name, report=str(plan.out / "report.html"))
    return summary


class _Runner:
    """Progress and results of one run."""

    def __init__(self, plan: Plan, records: Records, on_event: OnEvent) -> None:
        self.plan, self.records, self.on_event = plan, records, on_event
        self.done = 0
        self.total = plan.total
        self.spent: list[float] = []
        self.earlier = 0.0
        """Seconds of training in earlier sessions."""
        self.searches: dict[str, Search] = {}
        self.failed: list[Record] = []
        self.queue = [words(cell) for contender in plan.contenders for cell in _cells(plan, contender)]

    def tell(self, kind: Any, text: str, **detail: Any) -> None:
        left = None
        if self.spent:
            left = sum(self.spent) / len(self.spent) * (self.total - self.done)
        self.on_event(Event(kind, text, self.done, self.total, left, detail))

    def contender(self, contender: Contender) -> list[Record]:
        """Search a rate, and test its runs; returns the final records of one method."""
        end = self.done + _planned(self.plan, contender)

        def run(rate: float, seed: int) -> Record | None:
            cell = Cell("search" if seed == self.plan.seeds[0] else "seed", contender, rate, seed)
            if self.done >= end:  # more than was planned
                self.total += 1
                self.queue.insert(self.done, words(cell))
            record = self.cell(cell)
            return record if record["status"] == "ok" else None

        slack = self.plan.splits["validation"].examples ** -0.5  # about the chance in a score of so many rows
        search = Search(contender.rates, self.plan.seeds, run, self.score, slack)
        self.searches[contender.text] = search
        self.done = max(self.done, end)
        finals = [self.tested(contender, record) for record in search.chosen]
        for tried in search.runs.values():
            for record in tried:
                if record["stage"] != "final":
                    shutil.rmtree(self.plan.out / record["adapter"], ignore_errors=True)
        return [record for record in finals if record["status"] == "ok"]

    def score(self, record: Record) -> float:
        """The primary metric on the validation rows, turned so that higher is better."""
        metric = self.plan.task.metric
        value = float(record["scores"]["validation"][metric])
        return -value if metric in LOWER_IS_BETTER else value

    def tested(self, contender: Contender, trained: Record) -> Record:
        """Test a run of the chosen rate."""
        cell = Cell("final", contender, trained["learning_rate"], trained["seed"])
        key = self.plan.key(cell) + TESTED
        record = self.records.get(key, adapter=True)
        if record is None:
            with self._attempt(cell, key) as attempt:
                self.plan.host.load(self.plan.out / trained["adapter"], name=NAME)
                attempt.result = self._finish(cell, key, {k: v for k, v in trained.items() if k != "scores"}, trained)
            record = attempt.result
        return record

    def cell(self, cell: Cell) -> Record:
        """Train a cell, or take it from the records."""
        key = self.plan.key(cell)
        known = self.records.get(key + TESTED, adapter=True)
        known = known or self.records.get(key, adapter=not self._is_tested(cell.contender))
        if known is None:
            self.tell("cell_start", words(cell), next=self._next())
            start = time.perf_counter()
            with self._attempt(cell, key) as attempt:
                attempt.result = self._train(cell, key)
            known = attempt.result
            self.spent.append(time.perf_counter() - start)
        else:
            self.earlier += known["train_seconds"]
        self.done += 1
        self.tell(
            "cell_done" if known["status"] == "ok" else "cell_failed", words(cell), record=known, next=self._next()
        )
        return known

    def _is_tested(self, contender: Contender) -> bool:
        """Whether all seeds of some rate were tested, so that the adapters of the search are needed no longer."""

        def is_there(rate: float, seed: int) -> bool:
            key = self.plan.key(Cell("final", contender, rate, seed)) + TESTED
            return self.records.get(key, adapter=True) is not None

        return any(all(is_there(rate, seed) for seed in self.plan.seeds) for rate in contender.reach)

    def _next(self) -> str | None:
        return self.queue[self.done + 1] if self.done + 1 < len(self.queue) else None

    def _train(self, cell: Cell, key: str) -> Record:
        plan = self.plan
        head = plan.make_head(cell.seed)
        adapter = plan.host.attach(NAME, cell.contender.method, seed=cell.seed, head=head, extra=_extra(plan))
        settings = dataclasses.replace(plan.settings, learning_rate=cell.rate, seed=cell.seed)
        counts = {"params": adapter.count, "head_params": adapter.head_count}

        def on_step(step: int, total: int, loss: float, rate: float) -> None:
            self.tell("step", words(cell), step=step, steps=total, loss=loss)

        outcome = train(
            plan.host, NAME, plan.task, plan.splits["train"], plan.splits["validation"], plan.tokenizer, settings,
            on_step=on_step,
        )  # fmt: skip
        trained = {
            **counts,
            "share": counts["params"] / plan.host.sites.base_params,
            "history": outcome.history,
            "evaluations": [(step, scores[plan.task.metric]) for step, scores in outcome.evaluations],
            "train_seconds": outcome.seconds,
            "examples_per_second": outcome.examples_per_second,
            "peak_memory_bytes": outcome.peak_memory_bytes,
            "bfloat16": outcome.bfloat16,
            "idle": outcome.idle,
            "truncated": outcome.truncated,
            "scores": {"validation": outcome.evaluations[-1][1], "test": None},
        }
        folder = f"search/{key}"
        plan.host.save(NAME, plan.out / folder)
        return self.records.add(self._record(cell, key) | trained | {"adapter": folder})

    def _finish(self, cell: Cell, key: str, trained: Record, scored: Record) -> Record:
        """Test the attached adapter, keep it, and at the first seed measure what it costs to use."""
        plan = self.plan
        test = plan.splits["test"]
        answers = predict(plan.host, NAME, plan.task, test, plan.tokenizer, precision=plan.settings.precision)
        scores = {"validation": scored["scores"]["validation"], "test": plan.task.score(answers, test.references)}
        folder = f"adapters/{slug(cell.contender.text)}-seed{cell.seed}"
        plan.host.save(NAME, plan.out / folder)
        size = sum((plan.out / folder / file).stat().st_size for file in ("adapter.json", "adapter.safetensors"))
        record = trained | self._record(cell, key) | {"scores": scores, "adapter": folder, "adapter_bytes": size}
        if cell.seed == plan.seeds[0]:
            record |= dataclasses.asdict(costs_of(plan, NAME))
        return self.records.add(record, answers)

    def _record(self, cell: Cell, key: str) -> Record:
        return {
            "cell": key,
            "stage": cell.stage,
            "method": cell.contender.text,
            "name": cell.contender.method.label,
            "learning_rate": cell.rate,
            "seed": cell.seed,
            "status": "ok",
            "error": None,
            "metric": self.plan.task.metric,
            "config": self.plan.identity(cell),
            "versions": versions(),
        }

    @contextmanager
    def _attempt(self, cell: Cell, key: str) -> Iterator[_Attempt]:
        """Run a block that leaves the host as it was; a failure becomes a record."""
        attempt = _Attempt()
        try:
            yield attempt
        except Exception as error:
            attempt.result = self._record(cell, key) | {"status": "failed", "error": f"{type(error).__name__}: {error}"}
            self.records.add(attempt.result)
            self.failed.append(attempt.result)
        finally:
            if NAME in self.plan.host.adapters:
                self.plan.host.detach(NAME)


class _Attempt:
    """Holds what an attempted block made."""

    result: Record


def words(cell: Cell) -> str:
    """A cell for people: `LoRA(r=12), rate 0.002, search`."""
    what = "rate search" if cell.stage == "search" else f"seed {cell.seed}"
    return f"{cell.contender.text}, rate {cell.rate:g}, {what}"


def slug(text: str) -> str:
    """A method's text as a folder name: `LoRA-r-12`."""
    kept = "".join(letter if letter.isalnum() or letter in "._" else "-" for letter in text)
    return "-".join(part for part in kept.split("-") if part)


def _cells(plan: Plan, contender: Contender) -> list[Cell]:
    seeds = [Cell("seed", contender, contender.rates[-1], seed) for seed in plan.seeds[1:]]
    return [Cell("search", contender, rate, plan.seeds[0]) for rate in contender.rates] + seeds


def _planned(plan: Plan, contender: Contender) -> int:
    """Trainings of one method, where no edge and no bad seed asks for more."""
    return len(contender.rates) + len(plan.seeds) - 1


def _extra(plan: Plan) -> dict[str, Any]:
    """What an adapter folder must hold so that `evaluate` and `predict` need nothing else."""
    return {
        "task": plan.task.to_json(),
        "tokenizer": tokenizer_fingerprint(plan.tokenizer),
        "model": plan.model,
        "data": {"name": plan.data.name, "source": plan.data.origin},
        "settings": {"precision": plan.settings.precision},
    }
