"""One prompting run from its parts to a folder: load, find or train the prompt, score, save."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deltatune.core.errors import DeltatuneError
from deltatune.core.method import Method
from deltatune.core.trained_rows import TrainedRows
from deltatune.data import Data, Row
from deltatune.data.mixture_data import MixtureData
from deltatune.models.versions import versions
from deltatune.prompting.choose_prompts import NO_OPTIONS, PromptOptions
from deltatune.prompting.prompt_cost import PromptCost, counted
from deltatune.prompting.prompt_method import Fitted, OnProgress, PromptMethod, PromptRows, with_stored_task
from deltatune.prompting.zero_shot import Cloze, as_prompt_method
from deltatune.store import run_folder
from deltatune.store.folder_lock import FolderLock
from deltatune.tasks.row_hashes import row_hashes
from deltatune.tasks.tokenization import with_token_ids
from deltatune.training.inference.text_vectors import forget_vectors
from deltatune.training.open_session import open_session
from deltatune.training.session import Session
from deltatune.training.settings import AUTO, Settings

FACTS = ("training", "prompts", "trials", "notes", "cost", "scoring")
"""What metrics.json holds besides the scores of the splits."""


@dataclass(frozen=True)
class PromptJob:
    """The configuration of one prompting run."""

    model: str
    """A model's folder, its name on the hub, or builtin."""
    data: Data
    method: str | Method
    """A prompting method, or a tuning method, which is trained through label words."""
    budget: str | None = None
    """Sets the size of the tuning method within: a share of the model such as 0.5%, or a number such as 300k."""
    options: PromptOptions = NO_OPTIONS
    """What the user says of the prompts."""
    unlabelled: Sequence[Row] = ()
    """Further rows, whose labels are not known."""
    task: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the task that are set; the others are inferred from the data."""
    settings: Settings = field(default_factory=Settings)
    quantize: str | None = None
    """How the base's linear maps are stored, such as nf4; None: as they were published."""


@dataclass(frozen=True)
class PreparedPrompt:
    """Everything a prompting run needs, checked; no adapter is attached yet."""

    session: Session
    method: PromptMethod
    settings: Settings
    data: Data
    rows: PromptRows
    options: PromptOptions
    notes: tuple[str, ...] = ()
    """What was inferred, in sentences."""


def as_prompting(method: str | Method) -> PromptMethod:
    """A method that finds or trains a prompt: a tuning method is trained through label words."""
    read = as_prompt_method(method)
    return read if isinstance(read, PromptMethod) else Cloze(read)


def open_prompt_session(
    model: str,
    data: Data,
    task: Mapping[str, Any] | None = None,
    precision: str = "auto",
    mixture: bool = False,
    quantize: str | None = None,
) -> Session:
    """The model with its language-model head, and the task of the data; no adapter is attached yet.

    Texts are limited to the model's positions, unless `task` sets max_length. `mixture`: whether several data sets are
    possible. Raises DeltatuneError for others, and for a model without a language-model head.
    """
    parts = data.parts if isinstance(data, MixtureData) else {data.name: data}
    if isinstance(data, MixtureData) and not mixture:
        raise DeltatuneError(f"a prompt is for a single data set; this is a mixture of {', '.join(parts)}")
    classes = all(part.kind == "classes" for part in parts.values())
    session = open_session(model, data, task, precision=precision, loads="words" if classes else "", quantize=quantize)
    return session if (task or {}).get("max_length") else session.limited(session.positions)


def prepare(job: PromptJob) -> PreparedPrompt:
    """Load the model and check the method, the prompt and the first row; every mistake shows here, before training."""
    method, settings = as_prompting(job.method), job.settings
    if job.unlabelled and not method.reads_unlabelled:
        raise DeltatuneError(
            f"{method!r} learns from labelled rows only; leave the unlabelled rows out, or choose a method that reads "
            "them, such as PET()"
        )
    session = open_prompt_session(
        job.model, job.data, job.task, settings.precision, method.reads_mixtures, job.quantize
    )
    method.check_task(session.task)
    if job.budget is not None:
        method = _within(session, method, job.budget)
    if settings.learning_rate == AUTO:
        raise DeltatuneError(
            f"learning_rate {AUTO}: it is searched for methods that train with a head, not for {method!r}; give a "
            "rate, or search with `deltatune compare`"
        )
    if method.trains and settings.learning_rate is None:
        settings = dataclasses.replace(settings, learning_rate=method.learning_rate)
    if not job.task.get("max_length"):
        session = session.limited(free_positions(session, method))
    rows = PromptRows(job.data.train, job.data.validation, job.unlabelled)
    method.check_session(session, rows, job.options)
    return PreparedPrompt(session, method, settings, job.data, rows, job.options, session.notes)


def _within(session: Session, method: PromptMethod, budget: str) -> PromptMethod:
    if method.size is None:
        raise DeltatuneError(f"--budget {budget}: {method!r} has no size that a budget could set; leave --budget out")
    fitted = session.fit(method, budget)
    assert isinstance(fitted, PromptMethod)
    return fitted


def free_positions(session: Session, method: PromptMethod) -> int | None:
    """Positions of the model that the tuning method within leaves to a text; None if the model has no limit."""
    if method.inner is None or method.inner.input_template or session.positions is None:
        return session.positions
    session.attach(with_token_ids(method.inner, session.tokenizer, session.task), 0, head=False)
    try:
        return session.free_positions()
    finally:
        session.detach()


def record_of(ready: PreparedPrompt, source: str) -> dict[str, Any]:
    """The configuration of a run as plain data: two runs with equal records are the same run."""
    session = ready.session
    return {
        "model": session.model,
        "base": session.base_record(),
        "data": {**run_folder.data_record(ready.data, source), **_digest(ready)},
        "task": session.task.to_json(),
        "method": repr(ready.method),
        "prompts": dataclasses.asdict(dataclasses.replace(ready.options, data="")),
        "head": None,
        "settings": ready.settings.record(),
        "versions": versions(),
    }


def _digest(ready: PreparedPrompt) -> dict[str, Any]:
    if not ready.rows.unlabelled:
        return {}
    content = hashlib.sha256()
    for row in ready.rows.unlabelled:
        content.update(repr([row.get(name) for name in ready.data.text]).encode("utf-8", "backslashreplace"))
    return {"unlabelled": {"rows": len(ready.rows.unlabelled), "content": content.hexdigest()[:32]}}


def find_prompt(
    session: Session,
    method: PromptMethod,
    rows: PromptRows,
    settings: Settings,
    options: PromptOptions = NO_OPTIONS,
    on_step: OnProgress | None = None,
    **more: Any,
) -> tuple[Fitted, PromptCost]:
    """What a method finds on these rows, with the rows noted in its adapter, and what that costs.

    `more` goes to the method's `fit`.
    """
    forget_vectors(session.host)  # those of an earlier prompt
    with counted(session.host) as cost:
        fitted = method.fit(session, rows, settings, options, on_step, **more)
    adapter, task = fitted.session.adapter, fitted.session.task
    if method.draws and adapter.trained_rows is not None and not len(adapter.trained_rows.train):
        hashes = (row_hashes(task, rows.train), row_hashes(task, rows.validation))
        adapter.trained_rows = TrainedRows().with_rows(*hashes)
    return fitted, cost


def run(
    ready: PreparedPrompt, folder: Path, record: Mapping[str, Any], on_step: OnProgress | None = None
) -> dict[str, Any]:
    """Find or train the prompt, score and save it; returns the content of metrics.json.

    After an interruption the same call begins again; training through label words resumes from its last checkpoint.
    """
    with FolderLock(folder):
        return _run(ready, folder, record, on_step)


def _run(ready: PreparedPrompt, folder: Path, record: Mapping[str, Any], on_step: OnProgress | None) -> dict[str, Any]:
    resumes = {"out": folder / run_folder.CHECKPOINTS, "reports": folder} if isinstance(ready.method, Cloze) else {}
    fitted, cost = find_prompt(
        ready.session, ready.method, ready.rows, ready.settings, ready.options, on_step, **resumes
    )
    session = fitted.session
    scores: dict[str, Any] = {}
    truncated: dict[str, int] = {}
    spent = PromptCost()
    splits = {split: rows for split, rows in ready.data.splits().items() if split != "train"}
    for split, rows in splits.items():
        encoded = session.encode(rows)
        truncated[split] = encoded.truncated
        with counted(session.host) as of_split:
            scores[split] = session.score(encoded)
        spent.add(of_split)
    metrics: dict[str, Any] = {
        **scores,
        "training": {**_facts(fitted, cost), "truncated": truncated},
        "prompts": list(fitted.prompts),
        "trials": [list(trial) for trial in fitted.trials],
        "notes": list(fitted.notes),
        "cost": cost.to_json(),
        "scoring": {"rows": sum(map(len, splits.values())), **spent.to_json()},
    }
    with_stored_task(session, {**record, **session.to_json(), "scores": metrics})
    session.host.save(session.name, folder / run_folder.ADAPTER)
    run_folder.finish(folder, metrics)
    return metrics


def scores_of(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The scores in the content of metrics.json, by split."""
    return {name: value for name, value in metrics.items() if name not in FACTS}


def _facts(fitted: Fitted, cost: PromptCost) -> dict[str, Any]:
    """Course of the training as plain data, or that there was none."""
    outcome = fitted.outcome
    if outcome is None:
        return {"steps": 0, "seconds": cost.seconds}
    return {**outcome.facts(), "seconds": cost.seconds, "resumed": outcome.resumed}
