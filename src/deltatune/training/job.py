"""One training run from its parts to a folder: load, attach, encode, train, score, save."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn

from deltatune.core.host import Host
from deltatune.core.method import Method
from deltatune.core.registry import parse
from deltatune.data import Data
from deltatune.models.versions import versions
from deltatune.store import run_folder
from deltatune.tasks import Encoded, Task
from deltatune.training.loop import OnStep
from deltatune.training.session import Session, open_session
from deltatune.training.settings import Settings
from deltatune.training.train_adapter import Outcome

Check = Callable[[Method, Host, nn.Module | None], list[str]]
"""Checks a method before it is attached; raises, or returns notes for the user."""


@dataclass(frozen=True)
class Job:
    """The configuration of one training run."""

    model: str
    """A model's folder, its name on the hub, or builtin."""
    data: Data
    method: str = "LoRA(r=8)"
    """The method's text form."""
    budget: str | None = None
    """Sets the method's size: a share of the model such as 0.5%, or a number such as 300k."""
    task: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the task that are set; the others are inferred from the data."""
    head: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the head that are set."""
    settings: Settings = field(default_factory=Settings)
    objective: Task | None = None
    """A task in place of the data's, such as a pretraining objective."""


@dataclass(frozen=True)
class Prepared:
    """Everything a run needs, checked."""

    session: Session
    """The model with the new adapter attached."""
    settings: Settings
    data: Data
    encoded: dict[str, Encoded]
    """Tokens of each split."""
    notes: list[str]
    """Notes for the user: what was inferred, what an export leaves out."""


def prepare(job: Job, check: Check | None = None) -> Prepared:
    """Load, attach and encode, the cheap things first; every mistake of the user shows here, before training."""
    settings = job.settings
    parse(job.method)
    session = open_session(job.model, job.data, job.task, job.head, job.objective, settings.precision)
    method = session.fit(job.method, job.budget)
    head = session.make_head(settings.seed)
    notes = [*session.notes, *(check(method, session.host, head or None) if check else [])]
    session.attach(method, settings.seed, head)
    if job.task.get("max_length") is None:
        session = session.limited(session.free_positions())
    if settings.learning_rate is None:
        settings = dataclasses.replace(settings, learning_rate=method.learning_rate)
    encoded = {split: session.encode(rows) for split, rows in job.data.splits().items()}
    return Prepared(session, settings, job.data, encoded, notes)


def record_of(ready: Prepared, source: str) -> dict[str, Any]:
    """The configuration of a run as plain data: two runs with equal records are the same run."""
    session, adapter = ready.session, ready.session.adapter
    return {
        "model": session.model,
        "data": run_folder.data_record(ready.data, source),
        "task": session.task.to_json(),
        "method": repr(adapter.method),
        "head": None if adapter.head is None else adapter.head.config.to_json(),  # type: ignore[operator,union-attr]
        "settings": dataclasses.asdict(ready.settings),
        "versions": versions(),
    }


def run(ready: Prepared, folder: Path, record: Mapping[str, Any], on_step: OnStep | None = None) -> dict[str, Any]:
    """Train, score and save; returns the content of metrics.json. Called again after an interruption, it resumes."""
    session, encoded = ready.session, ready.encoded
    outcome = session.train(
        encoded["train"],
        encoded["validation"],
        ready.settings,
        out=folder / run_folder.CHECKPOINTS,
        on_step=on_step,
        reports=folder,
    )
    answers = session.predict(encoded["test"])
    metrics = {
        "validation": outcome.evaluations[-1][1],
        "test": session.task.score(answers, encoded["test"].references),
        "training": _facts(outcome, encoded),
    }
    extra = {**record, **session.to_json(), "scores": metrics}
    if not (dist.is_available() and dist.is_initialized() and dist.get_rank()):  # only the first process writes
        session.host.save(session.name, folder / run_folder.ADAPTER, extra=extra)
        run_folder.finish(folder, metrics)
    return metrics


def _facts(outcome: Outcome, encoded: Mapping[str, Encoded]) -> dict[str, Any]:
    """Cost and course of the training as plain data."""
    return {
        "steps": outcome.history[-1][0],
        "final_loss": outcome.history[-1][1],
        "seconds": outcome.seconds,
        "examples_per_second": outcome.examples_per_second,
        "peak_memory_bytes": outcome.peak_memory_bytes,
        "bfloat16": outcome.bfloat16,
        "truncated": {split: rows.truncated for split, rows in encoded.items()},
    }
