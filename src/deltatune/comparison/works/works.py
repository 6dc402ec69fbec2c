"""Works: the pieces of a comparison that an executor runs in any process, each a training, a test or a measurement."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from deltatune.comparison.costs.inference_costs import costs_of
from deltatune.comparison.plans.plan import Cell, Plan
from deltatune.comparison.works.prompt_cells import (
    FittedSessions,
    as_read,
    fit_prompt,
    params_of,
    prompt_record,
    training_record,
)
from deltatune.prompting.prompt_cost import PromptCost, counted
from deltatune.prompting.prompt_method import PromptMethod
from deltatune.store.atomic_files import CannotWrite
from deltatune.training.session import Session
from deltatune.training.train_adapter import AdapterTraining, Outcome

Record = dict[str, Any]
OnStep = Callable[[int, int, float, float], None]
CHECKPOINTS, ADAPTER = "checkpoints", "adapter"
"""Folders of a training: what a paused one goes on from, and what a finished one leaves."""
PAUSES_ONLY = 1_000_000_000
"""Steps between checkpoints: none but those at which a training pauses."""


@dataclass(frozen=True)
class Work:
    """One piece of a comparison, as plain data."""

    kind: Literal["train", "test", "costs"]
    """A training, to its end or a pause; test scores of a trained adapter; its inference costs."""
    cell: Cell
    key: str
    """Identifies the result in the records."""
    folder: str
    """Where its files are, in the folder of the comparison."""
    until: int | None = None
    """Optimizer step after which a training pauses; None: it ends."""
    resumable: bool = False
    """Whether the training goes on from a checkpoint or leaves one."""
    keep: bool = True
    """Whether the trained adapter is saved."""
    needs_adapter: bool = False
    """Whether a stored record is of use only with its adapter."""
    splits: tuple[str, ...] = ()
    """Further splits that a training scores."""
    earlier: Record | None = None
    """The record that the work goes on from: of the paused training, or of the training to test."""

    def describe(self) -> str:
        """The work for people: `LoRA(r=12), lr 0.002, learning-rate search, to step 30`."""
        text = self.cell.describe()
        return text if self.until is None else f"{text}, to step {self.until}"


class Result(NamedTuple):
    """What a work returns."""

    record: Record
    """What is stored of it; `status` is "ok" or "failed"."""
    answers: Any = None
    """Answers on the test rows, for a test."""


class Worker:
    """Runs works of one plan, one after another, in this process."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.sessions = FittedSessions(plan)

    def perform(self, work: Work, on_step: OnStep | None = None) -> Result:
        """Run one work. A failure becomes a record; either way no adapter stays attached."""
        started = time.perf_counter()
        perform = {"train": self._train, "test": self._test, "costs": self._costs}[work.kind]
        try:
            record, answers = perform(work, on_step or ignore)
            return Result(record | {"work_seconds": time.perf_counter() - started}, answers)
        except CannotWrite:  # no result, and the next one could not be stored either
            raise
        except Exception as error:
            return Result(failed_record(error, time.perf_counter() - started))
        finally:
            self.plan.session.detach()

    def _train(self, work: Work, on_step: OnStep) -> Result:
        """Attach a new adapter, train it, score it on the validation rows, and keep it once it is trained."""
        plan, cell, session = self.plan, work.cell, self.plan.session
        if isinstance(cell.candidate.method, PromptMethod):
            fitted, prompt_cost = fit_prompt(plan, cell, extra_of(plan), on_step)
            record = prompt_record(fitted, prompt_cost, plan.rows_of(cell.draw)["validation"])
            return Result(stored_record(plan, work, session, record, paused=False, resumed=0))
        params, asked = attach_new(plan, work, session), training_of(plan, work, session, on_step)
        with counted(session.host) as cost:
            outcome = session.train(
                asked.rows_train,
                asked.rows_validation,
                asked.settings or plan.settings,
                on_step=asked.on_step,
                out=asked.out,
                until=asked.until,
            )
        return Result(outcome_record(plan, work, session, params, outcome, cost))

    def _test(self, work: Work, on_step: OnStep) -> Result:
        """Load a trained adapter, score it on the test rows and keep it."""
        plan, session, trained = self.plan, self.plan.session, work.earlier
        assert trained is not None
        own = self.sessions.opened(trained["adapter"])
        test = self.sessions.rows(own, "test")
        answers = own.predict(test)
        scores = {
            "validation": trained["scores"]["validation"],
            "test": own.task.score(answers, test.references),
            **{name: own.score(self.sessions.rows(own, name)) for name in plan.data.more_tests},
        }
        session.host.save(session.name, plan.out / work.folder)
        size = sum((plan.out / work.folder / file).stat().st_size for file in ("adapter.json", "adapter.safetensors"))
        return Result({"scores": scores, "adapter": work.folder, "adapter_bytes": size}, answers)

    def _costs(self, work: Work, on_step: OnStep) -> Result:
        """Measure the inference costs of a trained adapter, relative to the bare base."""
        assert work.earlier is not None
        own = self.sessions.opened(work.earlier["adapter"])
        test = self.sessions.rows(own, "test")
        record = dataclasses.asdict(costs_of(own, test, self.plan.splits["test"]))
        return Result(record | {"example": as_read(own, test) if work.earlier.get("prompts") else None})


def attach_new(plan: Plan, work: Work, session: Session) -> dict[str, int]:
    """Attach a new adapter of the work's method under the session's name; returns its parameters.

    They are counted here, before a reparametrisation is replaced by its values.
    """
    cell, head = work.cell, session.make_head(work.cell.seed)
    extra = {**session.to_json(), **extra_of(plan)}
    return params_of(session.attach(cell.candidate.method, cell.seed, head, extra=extra))


def training_of(plan: Plan, work: Work, session: Session, on_step: OnStep) -> AdapterTraining:
    """The training of the work's adapter, which is attached."""
    cell, splits = work.cell, plan.splits_of(work.cell.draw)
    settings = dataclasses.replace(plan.settings, learning_rate=cell.rate, seed=cell.seed, checkpoint_every=PAUSES_ONLY)
    out = plan.out / work.folder / CHECKPOINTS if work.resumable else None
    rows = splits["train"], splits["validation"]
    return AdapterTraining(session.name, session.task, *rows, settings, out, on_step, until=work.until)


def outcome_record(
    plan: Plan, work: Work, session: Session, params: Mapping[str, int], outcome: Outcome, cost: PromptCost
) -> Record:
    """The record of a training that has paused or ended; its adapter is kept if the work says so."""
    record = training_record(session, params, outcome, outcome.seconds, outcome.evaluations[-1][1], cost)
    record |= {"steps": plan.steps(work.cell.draw)}
    return stored_record(plan, work, session, record, outcome.paused, outcome.resumed)


def stored_record(plan: Plan, work: Work, session: Session, record: Record, paused: bool, resumed: int) -> Record:
    """A record with the costs before a pause and the scores on further splits; its adapter is kept if it is trained.

    resumed: the step that the training went on from. It is an earlier one than that of `work.earlier` where the newest
    checkpoint is gone, and its steps up to there were taken again.
    """
    if work.earlier is not None and resumed:
        share, earlier = min(1.0, resumed / work.earlier["until"]), work.earlier["cost"]
        own = record["cost"]
        record["cost"] = {name: own[name] + type(own[name])(share * earlier.get(name, 0)) for name in own}
    for name in work.splits:
        record["scores"] = record["scores"] | {name: session.score(plan.splits[name])}
    if work.keep and not paused:
        session.host.save(session.name, plan.out / work.folder / ADAPTER)
        record["adapter"] = f"{work.folder}/{ADAPTER}"
    return record


def failed_record(error: Exception, seconds: float) -> Record:
    """The record of a work that failed."""
    return {"status": "failed", "error": f"{type(error).__name__}: {error}", "work_seconds": seconds}


def extra_of(plan: Plan) -> dict[str, Any]:
    """What an adapter's folder must hold, besides its session, so that `evaluate` and `predict` can use it."""
    return {
        "data": {"name": plan.data.name, "source": plan.data.origin},
        "settings": {"precision": plan.settings.precision},
    }


def ignore(step: int, total: int, loss: float, rate: float) -> None:
    """Nobody watches."""
