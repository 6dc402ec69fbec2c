"""One training run from its parts to a folder: load, attach, encode, train, score, save."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn

from deltatune.core.errors import DeltatuneError
from deltatune.core.host import Host
from deltatune.core.method import Method
from deltatune.core.registry import parse_tuning
from deltatune.data import Data
from deltatune.models.versions import versions
from deltatune.store import run_folder
from deltatune.store.folder_lock import FolderLock
from deltatune.tasks import Encoded, Task
from deltatune.tasks.diffusion.text_to_image import EncodedPictures, TextToImage
from deltatune.training.continued.continued_training import Start, open_continued
from deltatune.training.continued.forgetting import EarlierData, earlier_data
from deltatune.training.inference.batches import device_of
from deltatune.training.inference.pictures import write_samples
from deltatune.training.initial_values.start_values import Init, check_init, start_values_
from deltatune.training.learning_rates.rate_search import plan_search
from deltatune.training.learning_rates.recommended_rate import recommended_rate, steps_of
from deltatune.training.open_session import OpenBase, open_host, open_session
from deltatune.training.session import Session
from deltatune.training.settings import AUTO, Settings
from deltatune.training.train_adapter import Outcome
from deltatune.training.training_loop.loop import OnStep

METHOD = "LoRA(r=8)"
"""The method if none is named."""

FEW_STEPS = 100
"""Optimizer steps on pictures below which a note says that they are few."""

Check = Callable[[Method, Host, nn.Module | None], list[str]]
"""Checks a method before it is attached; raises, or returns notes for the user."""


@dataclass(frozen=True)
class Job:
    """The configuration of one training run."""

    model: str
    """A model's folder, its name on the hub, or builtin."""
    data: Data
    method: str | None = None
    """The method's text form. Default: LoRA(r=8), or that of the adapter that training starts from."""
    budget: str | None = None
    """Sets the method's size: a share of the model such as 0.5%, or a number such as 300k."""
    task: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the task that are set; the others are inferred from the data."""
    head: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the head that are set."""
    settings: Settings = field(default_factory=Settings)
    objective: Task | None = None
    """A task in place of the data's, such as a pretraining objective."""
    start: Start | None = None
    """The adapter that training starts from; None for a new one."""
    new_labels: bool = False
    """Whether the head of that adapter gets an output for each label that it does not know."""
    source: str = ""
    """The data as the user named them."""
    quantize: str | None = None
    """How the base's linear maps are stored, such as nf4; None: as they were published, or as the adapter's base was
    that training starts from."""
    init: Init | None = None
    """Initial values of a LoRA: eva, from the training rows, or loftq, from what quantisation has lost. Default: drawn,
    and zero."""

    @property
    def method_text(self) -> str:
        """The method of a new adapter."""
        return self.method or METHOD


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
    start: Start | None = None
    """The adapter that training starts from."""
    earlier: list[EarlierData] = field(default_factory=list)
    """Test rows of its earlier trainings."""
    init: Init | None = None
    """The name of the adapter's initial values."""


def prepare(job: Job, check: Check | None = None, open_base: OpenBase = open_host, name: str | None = None) -> Prepared:
    """Load, attach and encode, the cheap things first; every mistake of the user shows here, before training.

    open_base: opens the base of a new adapter, or returns one that is open, on which the adapter is called `name`.
    """
    settings, start = job.settings, job.start
    if job.init is not None:
        check_init(job.init, job.method_text, job.quantize, start is not None)
    session, notes = (
        _new_adapter(job, check, open_base, name) if start is None else _continued_adapter(job, start, check)
    )
    if job.task.get("max_length") is None:  # a part of a mixture that is told one is limited too: there is one model
        session = session.limited(session.free_positions())
    encoded = {split: session.encode(rows) for split, rows in job.data.splits().items() if rows or split != "test"}
    if job.init is not None:
        start_values_(session, job.init, encoded["train"], settings)
    if settings.learning_rate == AUTO:
        plan_search(settings, session.task, encoded["train"], encoded.get("validation"))
    if settings.learning_rate is None:
        method, steps = session.adapter.method, steps_of(settings, len(encoded["train"]))
        rate = recommended_rate(method, steps) if start is None else method.learning_rate
        settings = dataclasses.replace(settings, learning_rate=rate)
    if isinstance(session.task, TextToImage) and (steps := steps_of(settings, len(encoded["train"]))) < FEW_STEPS:
        notes = [*notes, f"these are {steps} steps: a style takes some hundreds (--steps, --batch-size)"]
    if start is None:
        return Prepared(session, settings, job.data, encoded, notes, init=job.init)
    sources = list(getattr(job.data, "sources", {}).values())
    earlier, left_out = earlier_data(session, start, sources or [job.source or job.data.origin])
    return Prepared(session, settings, job.data, encoded, [*notes, *left_out], start, earlier)


def _new_adapter(job: Job, check: Check | None, open_base: OpenBase, name: str | None) -> tuple[Session, list[str]]:
    """The model with a new adapter attached, and notes."""
    parse_tuning(job.method_text)
    session = open_session(
        job.model, job.data, job.task, job.head, job.objective, job.settings.precision,
        open_base=open_base, quantize=job.quantize,
    )  # fmt: skip
    session = session if name is None else dataclasses.replace(session, name=name)
    method = session.fit(job.method_text, job.budget)
    head = session.make_head(job.settings.seed)
    notes = [*session.notes, *(check(method, session.host, head or None) if check else [])]
    session.attach(method, job.settings.seed, head)
    return session, notes


def _continued_adapter(job: Job, start: Start, check: Check | None) -> tuple[Session, list[str]]:
    """The adapter that training starts from on its model, and notes."""
    if job.budget is not None:
        raise DeltatuneError(f"--budget {job.budget}: the size is that of {start.path}; leave --budget out")
    if job.objective is not None:
        raise DeltatuneError(f"an objective trains a new adapter; leave out the adapter to start from, {start.path}")
    session = open_continued(
        start, job.data, model=job.model or None, method=job.method, task=job.task, head=job.head,
        precision=job.settings.precision, new_labels=job.new_labels, seed=job.settings.seed, quantize=job.quantize,
    )  # fmt: skip
    adapter = session.adapter
    return session, [*session.notes, *(check(adapter.method, session.host, adapter.head) if check else [])]


def record_of(ready: Prepared, source: str) -> dict[str, Any]:
    """The configuration of a run as plain data: two runs with equal records are the same run."""
    session, adapter = ready.session, ready.session.adapter
    return {
        "model": session.model,
        "base": session.base_record(attached=True),
        "data": run_folder.data_record(ready.data, source),
        "task": session.task.to_json(),
        "method": repr(adapter.method),
        "head": None if adapter.head is None else adapter.head.config.to_json(),  # type: ignore[operator,union-attr]
        "settings": ready.settings.record(device_of(session.host).type),
        "versions": versions(),
        **({} if ready.start is None else {"parents": ready.start.parents()}),
        **({} if ready.init is None else {"init": ready.init}),
    }


def run(ready: Prepared, folder: Path, record: Mapping[str, Any], on_step: OnStep | None = None) -> dict[str, Any]:
    """Train, score and save; returns the content of metrics.json. Called again after an interruption, it resumes."""
    with nullcontext() if _rank() else FolderLock(folder):  # only the first process writes
        return _run(ready, folder, record, on_step)


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def _run(ready: Prepared, folder: Path, record: Mapping[str, Any], on_step: OnStep | None) -> dict[str, Any]:
    session, encoded = ready.session, ready.encoded
    before = _scores_at_start(ready)
    outcome = session.train(
        encoded["train"],
        encoded["validation"],
        ready.settings,
        out=folder / run_folder.CHECKPOINTS,
        on_step=on_step,
        reports=folder,
    )
    return complete(ready, folder, record, outcome, before)


def complete(
    ready: Prepared,
    folder: Path,
    record: Mapping[str, Any],
    outcome: Outcome,
    before: Mapping[str, Any] | None = None,
    together: int = 1,
) -> dict[str, Any]:
    """Score and save a trained adapter; returns the content of metrics.json.

    before: scores at the start. together: how many adapters were trained in the same passes.
    """
    session, encoded = ready.session, ready.encoded
    shared = {"together": together} if together > 1 else {}
    metrics: dict[str, Any] = {
        "validation": outcome.evaluations[-1][1],
        **{split: session.score(rows) for split, rows in encoded.items() if split not in ("train", "validation")},
        "training": {**_facts(outcome, encoded), "base_bytes": session.host.base.bytes, **shared},
        **(before or {}),
    }
    for data, scores in zip(ready.earlier, metrics.get("earlier", ()), strict=True):
        scores["after"] = data.scores()
    extra = {**record, **session.to_json(), "scores": metrics}
    if not _rank():
        validation = encoded.get("validation")
        if isinstance(session.task, TextToImage) and isinstance(validation, EncodedPictures):
            write_samples(session.host, session.name, session.task, validation, folder, ready.settings.seed)
        session.host.save(session.name, folder / run_folder.ADAPTER, extra=extra)
        run_folder.finish(folder, metrics)
    return metrics


def _scores_at_start(ready: Prepared) -> dict[str, Any]:
    """Scores of the adapter that training starts from: on the new rows, and on those of its earlier trainings.

    A new adapter of pictures has a loss too: that of the model without it.
    """
    if ready.start is None and isinstance(ready.session.task, TextToImage):
        return {"before": _scores_of_all(ready)}
    if ready.start is None:
        return {}
    return {
        "before": _scores_of_all(ready),
        "earlier": [
            {
                "source": data.source,
                "part": data.session.part,
                "rows": data.encoded.examples,
                "before": data.scores(),
            }
            for data in ready.earlier
        ],
    }


def _scores_of_all(ready: Prepared) -> dict[str, dict[str, float]]:
    """Scores on every split but the training rows."""
    return {split: ready.session.score(rows) for split, rows in ready.encoded.items() if split != "train"}


def _facts(outcome: Outcome, encoded: Mapping[str, Encoded]) -> dict[str, Any]:
    """Cost and course of the training as plain data."""
    return {
        **outcome.facts(),
        **({} if outcome.search is None else {"search": outcome.search.to_json()}),
        "truncated": {split: rows.truncated for split, rows in encoded.items()},
    }
