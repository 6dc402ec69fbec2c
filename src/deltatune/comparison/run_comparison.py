"""Comparison run: searches on the validation rows, test scores, more runs of methods that are not told apart."""

from __future__ import annotations

import dataclasses
import shutil
import statistics
import time
from collections.abc import Sequence
from typing import Any

from deltatune.comparison.executors.choose_executor import choose_executor
from deltatune.comparison.executors.executor import InProcess
from deltatune.comparison.plans.candidates import Candidate
from deltatune.comparison.plans.plan import Cell, Plan, Repeat
from deltatune.comparison.plans.time_plan import fit_minutes
from deltatune.comparison.report.page import write_report
from deltatune.comparison.results.decision import Decision, RunScorers, decide_pairs, is_fixed
from deltatune.comparison.results.progress_file import with_progress
from deltatune.comparison.results.records import write_summary
from deltatune.comparison.results.summary import summarise
from deltatune.comparison.works.cells import CellRunner, MakeExecutor, OnEvent, Program
from deltatune.comparison.works.works import Record, Work
from deltatune.prompting.prompt_method import PromptMethod
from deltatune.store.atomic_files import MANIFEST
from deltatune.store.folder_lock import FolderLock
from deltatune.tasks.metrics.metric_facts import lower_is_better
from deltatune.training.learning_rates.successive_halving import Arm, Run, Search

SEARCH = "search"
"""Folder of checkpoints and adapters that are kept until their method is tested."""
TESTED, COSTS = "-test", "-costs"
"""Suffixes of a cell's key in the records of its test scores and its inference costs."""


def run(plan: Plan, on_event: OnEvent | None = None) -> dict[str, Any]:
    """Run what is left of a plan and return its summary; writes `summary.json` and `report.html` to its folder.

    Finished cells are read from the folder, so an interrupted comparison resumes where it stopped. A cell that fails
    is recorded and does not end the run. With `minutes`, rows are left out where all would take too long.
    """
    with FolderLock(plan.out):
        return _run(fit_minutes(plan), on_event)


def _run(plan: Plan, on_event: OnEvent | None) -> dict[str, Any]:
    comparison = Comparison(plan, with_progress(plan.out, on_event), *choose_executor(plan))
    cells = comparison.cells
    started = time.perf_counter()
    cells.notify("start", plan.name)
    try:
        decision = comparison.decide()
    finally:
        cells.close()
    comparison.measure()
    elapsed = cells.earlier_seconds / comparison.slots + time.perf_counter() - started
    scorers, finals, searches = comparison.scorers, comparison.finals, comparison.searches
    summary = summarise(plan, finals, scorers, searches, cells.failed, elapsed, decision)
    write_summary(plan.out / "summary.json", summary)
    write_report(summary, plan.out / "report.html")
    cells.notify("done", plan.name, report=str(plan.out / "report.html"))
    return summary


class Comparison:
    """The searches, tests and further runs of the methods of a plan."""

    def __init__(
        self, plan: Plan, on_event: OnEvent | None = None, executor: MakeExecutor = InProcess, slots: int = 1
    ) -> None:
        self.plan, self.slots = plan, slots
        self.cells = CellRunner(plan, on_event, executor)
        self.scorers = RunScorers(plan, self.cells.records)
        self.started = time.perf_counter()
        self.searches: dict[str, Search[Candidate]] = {}
        """Searches by the method as the user wrote it."""
        self.finals: dict[str, list[Record]] = {}
        """Tested runs of the chosen size and rate, by the method as the user wrote it."""
        self.repeated: dict[str, int] = {}
        """Repeats that each method has had, those that failed included."""

    def decide(self) -> Decision:
        """Run every method, look which are told apart, and add runs of the others until all are or nothing is left."""
        plan = self.plan
        for asked in plan.contestants:
            self.searches[asked] = self._search(asked)
            self.cells.expected[asked] = self.searches[asked].planned
        self.cells.run({asked: self._start(asked) for asked in plan.contestants})
        decision = decide_pairs(plan, self.finals, self.scorers, Decision())
        while more := self._to_repeat(decision):
            if not self._in_time(more):
                return decision.ended("time")
            self.cells.notify("look", plan.name, sentence=decision.sentence())
            self.cells.run({asked: self._more(asked) for asked in more})
            decision = decide_pairs(plan, self.finals, self.scorers, decision)
        return decision.ended("seeds" if decision.open_methods() else "decided")

    def measure(self) -> None:
        """Inference costs of every method, in this process alone: other work at the same time would distort them."""
        self.cells.make_executor = InProcess
        self.cells.run({asked: self._measure(asked) for asked, finals in self.finals.items() if finals})

    def _search(self, asked: str) -> Search[Candidate]:
        """The search of a method's size and rate."""
        plan, sizes = self.plan, self.plan.contestants[asked]
        pauses = not any(isinstance(size.method, PromptMethod) for size in sizes)
        arms = [Arm(size, rate) for size in sizes for rate in size.rates]
        slack = plan.splits["validation"].examples ** -0.5  # about the standard error of a score of so many rows
        steps = plan.steps(plan.repeats[0].draw) if pauses else None
        return Search(arms, plan.repeats[: plan.start], steps, self._score, slack)

    def _start(self, asked: str) -> Program:
        """The search of a method, its first repeats and their test scores."""
        plan, search = self.plan, self.searches[asked]
        self.repeated[asked], self.finals[asked] = plan.start, []
        program, answer = search.program(), None
        while True:
            try:
                runs = next(program) if answer is None else program.send(answer)
            except StopIteration:
                break
            self.cells.expected[asked] = max(0, self.cells.expected[asked] - len(runs))
            records = yield [self._training(run, search) for run in runs]
            answer = [record if record["status"] == "ok" else None for record in records]
        self.cells.expected[asked] = 0
        yield from self._test(asked, search.arm.candidate, search.chosen)
        for arm in dict.fromkeys([*search.arms, *(trial.arm for trial in search.trials)]):
            for repeat in plan.repeats[: plan.start]:
                self._forget(self._cell(arm, repeat))

    def _more(self, asked: str) -> Program:
        """The next repeats of a method at its chosen size and rate, and their test scores."""
        search = self.searches[asked]
        repeats = self._next(asked)
        self.repeated[asked] += len(repeats)
        records = yield [self._training(Run(search.arm, repeat, None), search) for repeat in repeats]
        trained = [record for record in records if record["status"] == "ok"]
        search.runs[search.arm] += trained
        yield from self._test(asked, search.arm.candidate, trained)
        for repeat in repeats:
            self._forget(self._cell(search.arm, repeat))

    def _test(self, asked: str, candidate: Candidate, trained: Sequence[Record]) -> Program:
        """Score trained runs on the test rows; one whose adapter is gone, after a kill, is trained again first."""
        plan = self.plan
        works = []
        for record in trained:
            cell = Cell("final", candidate, record["learning_rate"], record["seed"], record.get("draw"))
            drawn = "" if cell.draw is None else f"-draw{cell.draw}"
            folder = f"adapters/{slug(candidate.text)}{drawn}-seed{cell.seed}"
            works.append(Work("test", cell, plan.key(cell) + TESTED, folder, earlier=record))
        untested = [work for work in works if self.cells.records.get(work.key, adapter=True) is None]
        again = [work for work in untested if not self._has_adapter(work.earlier or {})]
        if again:
            retrained = yield [
                dataclasses.replace(
                    work,
                    kind="train",
                    key=plan.key(work.cell),
                    folder=f"{SEARCH}/{plan.key(work.cell)}",
                    earlier=None,
                    needs_adapter=True,
                )
                for work in again
            ]
            fresh = {record["cell"]: record for record in retrained if record["status"] == "ok"}
            works = [dataclasses.replace(work, earlier=fresh.get(plan.key(work.cell), work.earlier)) for work in works]
        records = yield works
        self.finals[asked] += [record for record in records if record["status"] == "ok"]

    def _measure(self, asked: str) -> Program:
        """Inference costs of a method's first tested run, which its record then holds."""
        record = self.finals[asked][0]
        candidate = self.searches[asked].arm.candidate
        cell = Cell("costs", candidate, record["learning_rate"], record["seed"], record.get("draw"))
        costs = yield [Work("costs", cell, self.plan.key(cell) + COSTS, record["adapter"], earlier=record)]
        if costs[0]["status"] == "ok":
            self.finals[asked][0] = costs[0] | record

    def _training(self, run: Run[Candidate], search: Search[Candidate]) -> Work:
        """The work of a run that a search asks for."""
        cell = self._cell(run.arm, run.repeat)
        key = self.plan.key(cell)
        first = run.repeat == self.plan.repeats[0]
        return Work(
            "train",
            cell,
            key if run.until is None else f"{key}@{run.until}",
            f"{SEARCH}/{key}",
            until=run.until,
            resumable=first and bool(search.rungs),
            earlier=search.last.get(run.arm) if first else None,
        )

    def _cell(self, arm: Arm[Candidate], repeat: Repeat) -> Cell:
        stage: Any = "search" if repeat == self.plan.repeats[0] else "seed"
        return Cell(stage, arm.candidate, arm.rate, *repeat)

    def _forget(self, cell: Cell) -> None:
        """Remove the checkpoints and the adapter of a training that nothing needs any more."""
        shutil.rmtree(self.plan.out / SEARCH / self.plan.key(cell), ignore_errors=True)

    def _to_repeat(self, decision: Decision) -> list[str]:
        """Methods of undecided pairs that may get more runs."""
        undecided = decision.open_methods()
        return [
            asked
            for asked, finals in self.finals.items()
            if finals
            and finals[0]["method"] in undecided
            and self.repeated[asked] < len(self.plan.repeats)
            and not is_fixed(self.searches[asked].arm.candidate.method)
        ]

    def _in_time(self, more: Sequence[str]) -> bool:
        """Whether further runs of these methods fit into the time that is left; those of an earlier session do."""
        left = [asked for asked in more if not self._has_next(asked)]
        if self.plan.minutes is None or not left:
            return True
        seconds = sum(_seconds(self.finals[asked]) for asked in left) * self.plan.look / self.slots
        used = self.cells.earlier_seconds / self.slots + time.perf_counter() - self.started
        return used + seconds < self.plan.minutes * 60

    def _has_next(self, asked: str) -> bool:
        """Whether the next runs of a method are stored."""
        arm = self.searches[asked].arm
        cells = [Cell("final", arm.candidate, arm.rate, *repeat) for repeat in self._next(asked)]
        return all(self.cells.records.get(self.plan.key(cell) + TESTED, adapter=True) for cell in cells)

    def _next(self, asked: str) -> tuple[Repeat, ...]:
        """The repeats that a method gets if it is not told apart."""
        return self.plan.repeats[self.repeated[asked] :][: self.plan.look]

    def _score(self, record: Record) -> float:
        """The primary metric on the validation rows, with the sign changed if lower is better."""
        metric = self.plan.session.task.metric
        value = float(record["scores"]["validation"][metric])
        return -value if lower_is_better(metric) else value

    def _has_adapter(self, record: Record) -> bool:
        return (self.plan.out / str(record.get("adapter")) / MANIFEST).is_file()


def _seconds(finals: Sequence[Record]) -> float:
    """Seconds of one more run, by those so far."""
    return statistics.mean(float(record["train_seconds"] + record["work_seconds"]) for record in finals)


def slug(text: str) -> str:
    """A method's text as a folder name: `LoRA-r-12`."""
    letters = "".join(letter if letter.isalnum() or letter in "._" else "-" for letter in text)
    return "-".join(part for part in letters.split("-") if part)
