"""Run a plan cell by cell: a rate search on the validation rows, then every seed at the chosen rate, tested once."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from deltatune.comparison.contenders import EXTENSIONS, Contender, beyond
from deltatune.comparison.costs import costs_of
from deltatune.comparison.plan import Cell, Plan
from deltatune.comparison.records import Records, write_summary
from deltatune.comparison.report import write_report
from deltatune.comparison.summary import summarise, versions
from deltatune.tasks.metrics import LOWER_IS_BETTER
from deltatune.tasks.tokens import tokenizer_fingerprint
from deltatune.training import predict, train

Record = dict[str, Any]
NAME = "candidate"


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
    summary = summarise(plan, finals, runner.records, runner.searched, runner.failed, elapsed)
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
        self.searched: dict[str, list[Record]] = {}
        self.failed: list[Record] = []
        self.queue = [words(cell) for contender in plan.contenders for cell in _cells(plan, contender)]

    def tell(self, kind: Any, text: str, **detail: Any) -> None:
        left = None
        if self.spent:
            left = sum(self.spent) / len(self.spent) * (self.total - self.done)
        self.on_event(Event(kind, text, self.done, self.total, left, detail))

    def contender(self, contender: Contender) -> list[Record]:
        """Search, choose, and run all seeds of one method; returns its final records."""
        tried = self.search(contender)
        self.searched[contender.text] = tried
        if not tried:
            self.done += len(self.plan.seeds) - 1
            return []
        best = self.best(tried)
        finals = [self.tested(contender, best)]
        rate = best["learning_rate"]
        finals += [self.cell(Cell("final", contender, rate, seed)) for seed in self.plan.seeds[1:]]
        return [record for record in finals if record["status"] == "ok"]

    def search(self, contender: Contender) -> list[Record]:
        """Try the planned rates; while the best is at an edge of three or more, go on beyond it."""
        first = self.plan.seeds[0]
        tried = [self.cell(Cell("search", contender, rate, first)) for rate in contender.rates]
        tried = [record for record in tried if record["status"] == "ok"]
        for _ in range(EXTENSIONS if len(tried) >= 3 else 0):
            rates = [record["learning_rate"] for record in tried]
            rate = self.best(tried)["learning_rate"]
            if min(rates) < rate < max(rates):
                break
            further = Cell("search", contender, beyond(rate, 1 if rate == max(rates) else -1), first)
            self.total += 1
            self.queue.insert(self.done, words(further))
            more = self.cell(further)
            if more["status"] != "ok":
                break
            tried.append(more)
        return tried

    def best(self, tried: list[Record]) -> Record:
        """The record with the best primary metric on the validation rows; of equals the first."""
        sign = -1 if self.plan.task.metric in LOWER_IS_BETTER else 1
        return max(tried, key=lambda record: sign * record["scores"]["validation"][self.plan.task.metric])

    def tested(self, contender: Contender, searched: Record) -> Record:
        """The search's best run is the first seed's: test its adapter. The other adapters of the search are deleted."""
        cell = Cell("final", contender, searched["learning_rate"], self.plan.seeds[0])
        key = self.plan.key(cell) + "-test"
        record = self.records.get(key, adapter=True)
        if record is None:
            with self._attempt(cell, key) as attempt:
                self.plan.host.load(self.plan.out / searched["adapter"], name=NAME)
                attempt.result = self._finish(cell, key, {k: v for k, v in searched.items() if k != "scores"}, searched)
            record = attempt.result
        for other in self.searched[contender.text]:
            shutil.rmtree(self.plan.out / other["adapter"], ignore_errors=True)
        return record

    def cell(self, cell: Cell) -> Record:
        """Run one cell, or take it from the records."""
        key = self.plan.key(cell) + ("" if cell.stage == "search" else "-test")
        known = self.records.get(key, adapter=cell.stage == "final" or not self._is_tested(cell.contender))
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
        """Whether the first seed is done, so that the adapters of the search are needed no longer."""
        first = (Cell("final", contender, rate, self.plan.seeds[0]) for rate in contender.reach)
        return any(self.records.get(self.plan.key(cell) + "-test", adapter=True) for cell in first)

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
        if cell.stage == "final":
            return self._finish(cell, key, trained, trained)
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
    finals = [Cell("final", contender, contender.rates[-1], seed) for seed in plan.seeds[1:]]
    return [Cell("search", contender, rate, plan.seeds[0]) for rate in contender.rates] + finals


def _extra(plan: Plan) -> dict[str, Any]:
    """What an adapter folder must hold so that `evaluate` and `predict` need nothing else."""
    return {
        "task": plan.task.to_json(),
        "tokenizer": tokenizer_fingerprint(plan.tokenizer),
        "model": plan.model,
        "data": {"name": plan.data.name, "source": plan.data.origin},
        "settings": {"precision": plan.settings.precision},
    }
