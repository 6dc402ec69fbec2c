"""One training run from its parts to a folder: load, attach, encode, train, score, save."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn
from transformers import PreTrainedTokenizerBase

from deltatune.core.budget import fit_budget
from deltatune.core.errors import raise_all
from deltatune.core.host import Host
from deltatune.core.method import Method
from deltatune.core.registry import parse
from deltatune.data import Data
from deltatune.models.hardware import best_device
from deltatune.models.loading import load_backbone
from deltatune.store import run_folder as runs
from deltatune.tasks import Encoded, Task, longest_input, tokenizer_fingerprint
from deltatune.tasks.auto_task import KINDS, check_known, shorter, task_for
from deltatune.tasks.tokenization import worded
from deltatune.training.inference.prediction import encode_for, predict, room
from deltatune.training.settings import Settings
from deltatune.training.train_adapter import Outcome, train
from deltatune.training.trainer import OnStep

NAME = "adapter"
"""What the adapter is called on its host."""
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "accelerate")

Check = Callable[[Method, Host, nn.Module | None], list[str]]
"""Looks at a method before it is attached; raises, or returns what is to be said."""


@dataclass(frozen=True)
class Job:
    """What is asked for."""

    model: str
    """A model's folder, its name on the hub, or builtin."""
    data: Data
    method: str = "LoRA(r=8)"
    """The method's text form."""
    budget: str | None = None
    """Sets the method's size: a share of the model such as 0.5%, or a number such as 300k."""
    task: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the task that are set; the others suit the data."""
    head: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the head that are set."""
    settings: Settings = field(default_factory=Settings)
    objective: Task | None = None
    """A task of one's own in place of the data's, such as a pretraining objective."""


@dataclass(frozen=True)
class Prepared:
    """Everything a run needs, checked."""

    host: Host
    tokenizer: PreTrainedTokenizerBase
    task: Task
    settings: Settings
    data: Data
    encoded: dict[str, Encoded]
    """Tokens of each split."""
    notes: list[str]
    """What is to be said: what was guessed, what an export leaves out."""


def prepare(job: Job, check: Check | None = None) -> Prepared:
    """Load, attach and encode, the cheap things first; every mistake of the user shows here, before training."""
    method, data, settings = parse(job.method), job.data, job.settings
    asked = job.objective or KINDS[data.kind]
    _check_head(asked.answers, job.head)
    given = {name: value for name, value in job.task.items() if value is not None}
    if job.objective is None:
        check_known(KINDS[data.kind], given)
    loads = getattr(asked, "loads", asked.answers)
    model, tokenizer = load_backbone(job.model, pooler=job.head.get("pooling") == "pooler", answers=loads)
    host = Host(model.to(best_device()))  # type: ignore[arg-type]
    task, notes = job.objective, []
    if task is None:
        chosen = task_for(data, model.config, tokenizer, given)
        task, notes = chosen.task, list(chosen.notes)
    method = worded(method, tokenizer, task)
    if job.budget is not None:
        method = fit_budget(method, host.sites, job.budget)
    own = task.make_head(model.config, settings.seed, **(job.head if task.answers == "row" else {}))
    notes += check(method, host, own) if check else []
    host.attach(NAME, method, seed=settings.seed, head=False if own is None else own)
    if "max_length" not in given:
        task = shorter(task, _free_positions(host))
    if settings.learning_rate is None:
        settings = dataclasses.replace(settings, learning_rate=method.learning_rate)
    encoded = {split: encode_for(host, NAME, task, rows, tokenizer) for split, rows in data.splits().items()}
    return Prepared(host, tokenizer, task, settings, data, encoded, notes)


def record_of(ready: Prepared, model_name: str, source: str) -> dict[str, Any]:
    """What was asked for, as plain data: two runs with equal records are the same run."""
    adapter = ready.host.adapters[NAME]
    return {
        "model": model_name,
        "data": runs.data_record(ready.data, source),
        "task": ready.task.to_json(),
        "method": repr(adapter.method),
        "head": None if adapter.head is None else adapter.head.config.to_json(),  # type: ignore[operator,union-attr]
        "settings": dataclasses.asdict(ready.settings),
        "versions": versions(),
    }


def run(ready: Prepared, folder: Path, record: Mapping[str, Any], on_step: OnStep | None = None) -> dict[str, Any]:
    """Train, score, save; returns what metrics.json holds. Called again after a stop, it goes on."""
    host, task, settings, encoded = ready.host, ready.task, ready.settings, ready.encoded
    outcome = train(
        host, NAME, task, encoded["train"], encoded["validation"], ready.tokenizer, settings,
        folder / runs.CHECKPOINTS, on_step, reports=folder,
    )  # fmt: skip
    answers = predict(host, NAME, task, encoded["test"], ready.tokenizer, precision=settings.precision)
    metrics = {
        "validation": outcome.evaluations[-1][1],
        "test": task.score(answers, encoded["test"].references),
        "training": _facts(outcome, encoded),
    }
    extra = {**record, "tokenizer": tokenizer_fingerprint(ready.tokenizer), "scores": metrics}
    if not (dist.is_available() and dist.is_initialized() and dist.get_rank()):  # of several processes the first
        host.save(NAME, folder / runs.ADAPTER, extra=extra)
        runs.finish(folder, metrics)
    return metrics


def versions() -> dict[str, str | None]:
    """Versions of what a result depends on."""
    found: dict[str, str | None] = {"deltatune": version("deltatune"), "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _facts(outcome: Outcome, encoded: Mapping[str, Encoded]) -> dict[str, Any]:
    """What the training cost, as plain data."""
    return {
        "steps": outcome.history[-1][0],
        "final_loss": outcome.history[-1][1],
        "seconds": outcome.seconds,
        "examples_per_second": outcome.examples_per_second,
        "peak_memory_bytes": outcome.peak_memory_bytes,
        "bfloat16": outcome.bfloat16,
        "truncated": {split: rows.truncated for split, rows in encoded.items()},
    }


def _check_head(answers: str, head: Mapping[str, Any]) -> None:
    """Raise DeltatuneError for a head that is asked for and the task cannot have."""
    if answers == "row":
        return
    why = "reads every token" if answers == "token" else "is answered by the model's own words"
    asked = [name for name, value in head.items() if value]
    raise_all([f"{name}={head[name]!r}: this task {why}, so there is no such head to choose" for name in asked])


def _free_positions(host: Host) -> int | None:
    """Positions of the model that its adapter leaves to the text; None where there is no limit."""
    positions = longest_input(host.model)
    return None if positions is None else positions - room(host, NAME)
