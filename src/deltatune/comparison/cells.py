"""Cell runner: the training runs of a comparison one by one, each taken from the records or trained and stored."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from deltatune.comparison.plan import Cell, Plan
from deltatune.comparison.prompt_cells import fit_prompt, params_of, prompt_record, training_record
from deltatune.comparison.records import Records
from deltatune.models.versions import versions
from deltatune.prompting.prompt_cost import counted
from deltatune.prompting.prompt_method import OnProgress, PromptMethod
from deltatune.store.atomic_files import CannotWrite

Record = dict[str, Any]
EventKind = Literal["start", "cell_start", "step", "cell_done", "cell_failed", "done"]


@dataclass(frozen=True)
class Event:
    """Progress of a comparison, or of a search for the intrinsic dimension."""

    kind: EventKind
    text: str
    """The cell for people: method, learning rate, seed."""
    done: int
    """Cells finished."""
    total: int
    """Cells planned, as far as is known."""
    seconds_left: float | None
    """Estimate; None before the first cell is finished."""
    detail: dict[str, Any] = field(default_factory=dict)
    """`step`, `steps`, `loss` of a step; the record of a finished cell; the text of the `next` cell."""


OnEvent = Callable[[Event], None]


class CellRunner:
    """Runs the cells of a plan; results are stored in its folder the moment they are complete."""

    def __init__(self, plan: Plan, on_event: OnEvent | None = None) -> None:
        self.plan = plan
        self.records = Records(plan.out)
        self.records.repair_()
        self.on_event = on_event
        self.done = 0
        """Cells finished, in this session or an earlier one."""
        self.total = 0
        """Cells planned: the caller keeps it up to date."""
        self.queue: list[str] = []
        """Texts of all planned cells in order, for the display; may be left empty."""
        self.seconds: list[float] = []
        """Duration of each cell of this session."""
        self.earlier_seconds = 0.0
        """Seconds of training in earlier sessions."""
        self.failed: list[Record] = []

    def notify(self, kind: EventKind, text: str, **detail: Any) -> None:
        """Report progress to the caller of the comparison."""
        if self.on_event is None:
            return
        left = None
        if self.seconds:
            left = sum(self.seconds) / len(self.seconds) * (self.total - self.done)
        self.on_event(Event(kind, text, self.done, self.total, left, detail))

    def run(self, cell: Cell, stored: Record | None, complete: Callable[[Record], Record]) -> Record:
        """The record of a cell: the stored one, or that of a new training.

        `complete` receives the record of the training, while the adapter is attached, and returns what is stored. If
        the training fails, the record says why: a learning rate at which training diverges is a result too.
        """
        text, key = cell.describe(), self.plan.key(cell)
        record = stored
        if record is None:
            self.notify("cell_start", text, next=self._next())
            start = time.perf_counter()
            record = self.attempt(cell, key, lambda: self.records.add(complete(self.train(cell, key))))
            self.seconds.append(time.perf_counter() - start)
        else:
            self.earlier_seconds += record["train_seconds"]
        self.done += 1
        self.notify("cell_done" if record["status"] == "ok" else "cell_failed", text, record=record, next=self._next())
        return record

    def attempt(self, cell: Cell, key: str, compute: Callable[[], Record]) -> Record:
        """Return what `compute` returns; a failure becomes a record. Either way no adapter stays attached."""
        try:
            return compute()
        except CannotWrite:  # no result, and the next cell could not be stored either
            raise
        except Exception as error:
            failed = self.record_of(cell, key) | {"status": "failed", "error": f"{type(error).__name__}: {error}"}
            self.failed.append(failed)
            return self.records.add(failed)
        finally:
            self.plan.session.detach()

    def train(self, cell: Cell, key: str) -> Record:
        """Attach a new adapter, train it and score it on the validation rows; it stays attached."""
        if isinstance(cell.candidate.method, PromptMethod):
            fitted, cost = fit_prompt(self.plan, cell, _extra(self.plan), self._on_step(cell))
            return self.record_of(cell, key) | prompt_record(fitted, cost, self.plan.rows_of(cell.draw)["validation"])
        session, splits = self.plan.session, self.plan.splits_of(cell.draw)
        head, extra = session.make_head(cell.seed), _extra(self.plan)
        adapter = session.attach(cell.candidate.method, cell.seed, head, extra={**session.to_json(), **extra})
        settings = dataclasses.replace(self.plan.settings, learning_rate=cell.rate, seed=cell.seed)
        params = params_of(adapter)  # before a reparametrisation is replaced by its values
        with counted(session.host) as cost:
            outcome = session.train(splits["train"], splits["validation"], settings, on_step=self._on_step(cell))
        scores = outcome.evaluations[-1][1]
        return self.record_of(cell, key) | training_record(session, params, outcome, outcome.seconds, scores, cost)

    def _on_step(self, cell: Cell) -> OnProgress:
        text = cell.describe()

        def on_step(step: int, total: int, loss: float, rate: float) -> None:
            self.notify("step", text, step=step, steps=total, loss=loss)

        return on_step

    def record_of(self, cell: Cell, key: str) -> Record:
        """What identifies a cell in the records."""
        return {
            "cell": key,
            "stage": cell.stage,
            "method": cell.candidate.text,
            "name": cell.candidate.method.label,
            "learning_rate": cell.rate,
            "seed": cell.seed,
            "draw": cell.draw,
            "status": "ok",
            "error": None,
            "metric": self.plan.session.task.metric,
            "config": self.plan.identity(cell),
            "versions": versions(),
        }

    def _next(self) -> str | None:
        return self.queue[self.done + 1] if self.done + 1 < len(self.queue) else None


def _extra(plan: Plan) -> dict[str, Any]:
    """What an adapter's folder must hold, besides its session, so that `evaluate` and `predict` can use it."""
    return {
        "data": {"name": plan.data.name, "source": plan.data.origin},
        "settings": {"precision": plan.settings.precision},
    }
