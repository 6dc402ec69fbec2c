"""Works together: trainings of several adapters that share passes of the base, where that is measured to be faster."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from deltatune.comparison.plans.plan import Plan
from deltatune.comparison.works.works import (
    OnStep,
    Result,
    Work,
    Worker,
    attach_new,
    failed_record,
    ignore,
    outcome_record,
    training_of,
)
from deltatune.core.errors import DeltatuneError
from deltatune.prompting.prompt_cost import PromptCost, counted
from deltatune.prompting.prompt_method import PromptMethod
from deltatune.store.atomic_files import CannotWrite
from deltatune.training.joint_training.pass_speed import is_faster
from deltatune.training.joint_training.train_together import train_together
from deltatune.training.scaling.lower_layers import spares_first_block
from deltatune.training.session import Session
from deltatune.training.train_adapter import AdapterTraining, Outcome

MOST_TOGETHER = 8
"""Adapters in one pass: each has its own activations, gradients and moments."""


class JointWorker(Worker):
    """Runs works of one plan in this process; trainings that are given at once share passes where that is faster."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.faster: dict[tuple[frozenset[str], int], bool] = {}
        """What was measured, by the names of the methods and the number of adapters."""

    def perform_all(self, works: Sequence[Work], watch: Callable[[Work], OnStep]) -> Iterator[Result]:
        """Run works and yield their results in order, each as soon as it is there.

        `watch` is called when a work begins and returns what is called after each of its steps. What stops a shared
        pass altogether (memory, a method of another package that cannot share one) is no failure of the works: each
        is then run alone.
        """
        results = self._together(works, watch) if len(works) > 1 else None
        for number, work in enumerate(works):
            yield self.perform(work, watch(work)) if results is None else results[number]

    def _together(self, works: Sequence[Work], watch: Callable[[Work], OnStep]) -> list[Result] | None:
        """The results of trainings in one pass; None where they are to be run one after another."""
        plan, host = self.plan, self.plan.session.host
        kind = frozenset(work.cell.candidate.method.label for work in works), len(works)
        if not self.faster.get(kind, True):
            return None
        name = plan.session.name
        attached: list[Attached] = []
        try:
            for number, work in enumerate(works):
                session = dataclasses.replace(plan.session, name=f"{name}_{number}")
                attached.append(Attached(work, session, attach_new(plan, work, session)))
            if kind not in self.faster:
                trainings = [training_of(plan, *each[:2], ignore) for each in attached]
                self.faster[kind] = is_faster(host, trainings, plan.session.tokenizer)
            return train_attached(plan, attached, watch) if self.faster[kind] else None
        except CannotWrite:  # no result, and the next one could not be stored either
            raise
        except Exception:
            self.faster[kind] = False
            return None
        finally:
            for each in attached:
                each.session.detach()


class Attached(NamedTuple):
    """A work whose new adapter is on the host."""

    work: Work
    session: Session
    params: dict[str, int]
    """Its trainable parameters, and those of its head."""


def train_attached(plan: Plan, attached: Sequence[Attached], watch: Callable[[Work], OnStep]) -> list[Result]:
    """Train adapters in one pass. What they cost together is shared by their rows."""
    started, steps = time.perf_counter(), [0] * len(attached)
    trainings = [
        training_of(plan, each.work, each.session, _counting(steps, number, watch(each.work)))
        for number, each in enumerate(attached)
    ]
    with counted(plan.session.host) as cost:
        outcomes = train_together(plan.session.host, trainings, plan.session.tokenizer)
    seconds, results = time.perf_counter() - started, []
    for each, outcome, share in zip(attached, outcomes, _shares(trainings, outcomes, steps), strict=True):
        began = time.perf_counter()
        try:
            if isinstance(outcome, DeltatuneError):
                raise outcome
            outcome = dataclasses.replace(outcome, peak_memory_bytes=None)  # what was measured is that of all
            record = outcome_record(plan, *each, outcome, _part(cost, share)) | {"together": len(attached)}
        except CannotWrite:
            raise
        except Exception as error:
            record = failed_record(error, 0.0)
        results.append(Result(record | {"work_seconds": share * seconds + time.perf_counter() - began}))
    return results


def take_together(plan: Plan, queue: deque[Work]) -> list[Work]:
    """Take the next work from a queue, and those behind it that may be trained in one pass with it."""
    first = queue.popleft()
    if not may_share(plan, first):
        return [first]
    works, folders = [first], {first.folder}
    for work in queue:
        if work.folder not in folders and may_share(plan, work):  # parts of one training are never run at once
            works.append(work)
            folders.add(work.folder)
    works = works[:MOST_TOGETHER]
    for work in works[1:]:
        queue.remove(work)
    return works


def may_share(plan: Plan, work: Work) -> bool:
    """Whether a work is a training whose adapter can share passes, and gains by it.

    Prompting methods cannot, nor can changes of the base's own weights; a head alone is trained on kept outputs, and
    lower blocks that nothing changes are run once a row.
    """
    if plan.together == "off" or work.kind != "train" or plan.session.task.inputs != "text":
        return False
    method, sites = work.cell.candidate.method, plan.session.host.sites
    if isinstance(method, PromptMethod) or plan.settings.compile != "off" or spares_first_block(method, sites):
        return False
    picked = [site for part in method.parts for site in part.pick(sites)]
    return bool(picked) and not any(site.kind == "weight" for site in picked)


def _counting(steps: list[int], number: int, on_step: OnStep) -> OnStep:
    """Counts the steps of one training, and calls `on_step`."""

    def count(step: int, total: int, loss: float, rate: float) -> None:
        steps[number] += 1
        on_step(step, total, loss, rate)

    return count


def _shares(
    trainings: Sequence[AdapterTraining], outcomes: Sequence[Outcome | DeltatuneError], steps: Sequence[int]
) -> list[float]:
    """Each training's share of the rows that went through the model, in training and for its scores."""
    rows = []
    for training, outcome, taken in zip(trainings, outcomes, steps, strict=True):
        assert training.settings is not None
        scored = 0 if isinstance(outcome, DeltatuneError) else len(training.rows_validation or [])
        rows.append(taken * min(training.settings.batch_size, len(training.rows_train)) + scored)
    return [own / max(1, sum(rows)) for own in rows]


def _part(cost: PromptCost, share: float) -> PromptCost:
    """One training's part of what all cost."""
    return PromptCost(round(share * cost.passes), round(share * cost.tokens), share * cost.seconds, cost.calls)
