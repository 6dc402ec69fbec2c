"""Cell runner: takes each cell of a comparison from the records, or has an executor run it and stores the result."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from deltatune.comparison.executors.executor import Executor, InProcess
from deltatune.comparison.plans.plan import Plan
from deltatune.comparison.results.records import Records
from deltatune.comparison.works.works import Record, Work
from deltatune.models.versions import versions

EventKind = Literal["start", "cell_start", "step", "cell_done", "cell_failed", "look", "done"]


@dataclass(frozen=True)
class Event:
    """Progress of a comparison, or of a search for the intrinsic dimension."""

    kind: EventKind
    text: str
    """The cell for people: method, learning rate, seed."""
    done: int
    """Trainings finished, or paused."""
    total: int
    """Trainings planned, as far as is known."""
    seconds_left: float | None
    """Estimate; None before the first training is finished."""
    detail: dict[str, Any] = field(default_factory=dict)
    """`kind` of the work (train, test, costs); `step`, `steps`, `loss` of a step; the record of a finished cell; the
    text of the `next` cell; the `sentence` of a look at the results."""


OnEvent = Callable[[Event], None]
Program = Generator[Sequence[Work], list[Record], None]
"""Asks for works, several of which may run at once, and is sent their records in the same order."""
MakeExecutor = Callable[[Plan, Callable[..., None]], Executor]


class CellRunner:
    """Runs programs of works; results are stored in the plan's folder the moment they are complete."""

    def __init__(self, plan: Plan, on_event: OnEvent | None = None, executor: MakeExecutor = InProcess) -> None:
        self.plan = plan
        self.records = Records(plan.out)
        self.records.repair_()
        self.on_event, self.make_executor = on_event, executor
        self.executor: Executor | None = None
        self.done = 0
        """Trainings finished, in this session or an earlier one."""
        self.expected: dict[str, int] = {}
        """Trainings that each program may still ask for; the programs keep it up to date."""
        self.running: list[Work] = []
        """Works given to the executor that have not finished, in order."""
        self.seconds: list[float] = []
        """Duration of each training of this session."""
        self.earlier_seconds = 0.0
        """Seconds of work in earlier sessions."""
        self.failed: list[Record] = []

    @property
    def total(self) -> int:
        """Trainings planned, as far as is known."""
        running = sum(work.kind == "train" for work in self.running)
        return self.done + running + sum(self.expected.values())

    @property
    def seconds_left(self) -> float | None:
        """Estimate of the time that the planned trainings take; None before the first is finished."""
        if not self.seconds:
            return None
        slots = 1 if self.executor is None else self.executor.slots
        return sum(self.seconds) / len(self.seconds) * (self.total - self.done) / slots

    def notify(self, event: EventKind, text: str, **detail: Any) -> None:
        """Report progress to the caller of the comparison."""
        if self.on_event is not None:
            self.on_event(Event(event, text, self.done, self.total, self.seconds_left, detail))

    def run(self, programs: Mapping[str, Program]) -> None:
        """Run programs at once, each until it asks for nothing more; a work of an earlier one comes first."""
        asked: dict[str, list[Work]] = {}
        """By program, the works that it waits for; two of them may be one and the same."""
        known: dict[str, Record] = {}
        """Records of this call by key."""

        def proceed(name: str, records: list[Record] | None) -> None:
            """Send a program what it asked for, until it waits for something that is not stored."""
            program = programs[name]
            while True:
                try:
                    asked[name] = works = list(next(program) if records is None else program.send(records))
                except StopIteration:
                    del asked[name]
                    self.expected.pop(name, None)
                    return
                for work in works:
                    if work.key not in known or work.needs_adapter:
                        stored = self._stored(work)
                        if stored is None:
                            known.pop(work.key, None)
                            self._submit(work)
                        else:
                            known[work.key] = stored
                    else:
                        self._finish(work, known[work.key])
                if any(work.key not in known for work in works):
                    return
                records = [known[work.key] for work in works]

        for name in programs:
            asked[name] = []
            proceed(name, None)
        while self.running:
            work, record = self._wait()
            known[work.key] = record
            waiting = [name for name, works in asked.items() if any(each.key == work.key for each in works)]
            for name in waiting:
                if all(each.key in known for each in asked[name]):
                    proceed(name, [known[each.key] for each in asked[name]])

    def run_one(self, work: Work) -> Record:
        """The record of a single work."""
        records: list[Record] = []

        def program() -> Program:
            records.extend((yield [work]))

        self.run({"": program()})
        return records[0]

    def close(self) -> None:
        """End what runs."""
        if self.executor is not None:
            self.executor.close()
            self.executor = None
            self.running.clear()

    def _submit(self, work: Work) -> None:
        if any(other.key == work.key for other in self.running):  # it is asked for already
            return
        if self.executor is None:
            self.executor = self.make_executor(self.plan, self._on_progress)
        self.running.append(work)
        self.executor.submit(work)

    def _wait(self) -> tuple[Work, Record]:
        """The next finished work; its record is stored."""
        assert self.executor is not None
        work, result = self.executor.wait()
        self.running = [other for other in self.running if other.key != work.key]
        record = self._record_of(work) | result.record
        if work.kind == "train":
            self.seconds.append(record["work_seconds"])
        if record["status"] != "ok":
            self.failed.append(record)
        self.records.add(record, result.answers)
        self._finish(work, record)
        return work, record

    def _stored(self, work: Work) -> Record | None:
        """The record of an earlier session; failures are tried again."""
        record = self.records.get(work.key, adapter=work.kind == "test" or work.needs_adapter)
        if record is not None:
            self.earlier_seconds += record.get("work_seconds") or record.get("train_seconds") or 0.0
            self._finish(work, record)
        return record

    def _finish(self, work: Work, record: Record) -> None:
        self.done += work.kind == "train"
        kind: EventKind = "cell_done" if record["status"] == "ok" else "cell_failed"
        self.notify(kind, work.describe(), kind=work.kind, record=record, next=self._next())

    def _on_progress(self, kind: Literal["start", "step"], work: Work, detail: dict[str, Any]) -> None:
        if kind == "start":
            self.notify("cell_start", work.describe(), kind=work.kind, next=self._next())
        else:
            self.notify("step", work.describe(), kind=work.kind, **detail)

    def _next(self) -> str | None:
        slots = 1 if self.executor is None else self.executor.slots
        return self.running[slots].describe() if len(self.running) > slots else None

    def _record_of(self, work: Work) -> Record:
        """What identifies a work in the records."""
        cell = work.cell
        return {
            **(work.earlier if work.kind == "test" and work.earlier else {}),
            "cell": work.key,
            "stage": cell.stage,
            "method": cell.candidate.text,
            "name": cell.candidate.method.label,
            "learning_rate": cell.rate,
            "seed": cell.seed,
            "draw": cell.draw,
            "until": work.until,
            "status": "ok",
            "error": None,
            "metric": self.plan.session.task.metric,
            "config": self.plan.identity(cell),
            "versions": versions(),
        }
