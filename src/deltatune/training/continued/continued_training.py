"""Continued training: an adapter that was trained before goes on with new data, and its origin is kept.

Method, head and task come from the adapter; the new data must fit them. What is stored of every earlier training is its
folder, a fingerprint and its data, so that the new adapter can be scored on them again where they can be read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deltatune.core.adapter_formats import format_of
from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.core.input_validation.regular_files import expanded
from deltatune.core.method import Method
from deltatune.data import Data
from deltatune.data.dataset import TASK_OF
from deltatune.data.mixture_data import MixtureData, named_sources, read_parts
from deltatune.data.read_data import read_source
from deltatune.store import adapter_folder, run_folder
from deltatune.store.atomic_files import digest
from deltatune.store.fingerprint import contents_of
from deltatune.tasks import Classify, ExtractiveQA, Generate, Head, Mixture, Prefer, Tag, Task, task_from_json
from deltatune.tasks.preferences.preference import START
from deltatune.training.continued.other_adapters import open_unknown
from deltatune.training.continued.preference_task import NOW_PREFERS, preference_task
from deltatune.training.open_session import open_adapter
from deltatune.training.session import Session
from deltatune.training.start_adapter import load_start_

CHANGEABLE = ("metric", "max_length", "samples", "sample_prompts", "flip", "min_snr")
"""Fields of a task that a continued training may change, beside those that may change after training."""


@dataclass(frozen=True)
class Start:
    """The adapter that a training starts from."""

    path: Path
    """Its folder, or the file of a loralib checkpoint."""
    extra: Mapping[str, Any]
    """What its training stored; empty for adapters of other libraries."""

    @property
    def task(self) -> Task | None:
        """The task it was trained for; None where its folder does not say."""
        return task_from_json(dict(self.extra["task"])) if "task" in self.extra else None

    def part(self, name: str) -> Start:
        """The same adapter, seen as trained for one part of its mixture: to read the rows of that part."""
        task = self.task
        if task is None:
            return self
        if not isinstance(task, Mixture):
            raise DeltatuneError(f"{self.path} has one task, no mixture: name one data set")
        return replace(self, extra={**self.extra, "task": task.part(name).to_json()})

    def parents(self) -> list[dict[str, Any]]:
        """The adapters that the new one comes from, the oldest first, as plain data."""
        task = self.task
        parent = {
            "folder": str(self.path),
            "fingerprint": digest(self.path) if self.path.is_file() else contents_of(str(self.path)),
            "method": self.extra.get("method"),
            "data": self.extra.get("data"),
            "columns": {} if task is None else _columns(task),
            "task": None if task is None else task.to_json()["task"],
        }
        return [*(self.extra.get("parents") or ()), parent]

    def check_apart(self, folder: Path) -> None:
        """Raise DeltatuneError for a run's folder that would replace the adapter it starts from."""
        ours, theirs = folder.resolve(), self.path.resolve()
        if ours in (theirs, *theirs.parents) or theirs in ours.parents:
            raise DeltatuneError(f"{folder} holds the adapter that training starts from; choose another folder (--out)")


def _columns(task: Task) -> dict[str, Any]:
    """The columns of a task, or those of each part."""
    if isinstance(task, Mixture):
        return {name: _columns(part) for name, part in task.parts.items()}
    return {"text": list(task.text), "label": task.label}


def read_start(path: str | Path) -> Start:
    """The adapter of a folder, of a training run's folder, or of a loralib file. Raises DeltatuneError for others."""
    given = expanded(path)
    if given.is_file():
        return Start(given, {})
    folder = run_folder.find_adapter(given)
    format_of(folder)  # raises if there is no adapter at all
    config = adapter_folder.read_config(folder) if adapter_folder.knows(folder) else {}
    return Start(folder, config.get("extra") or {})


def read_rows(start: Start, source: str, *, text: Sequence[str] = (), label: str | None = None, **more: Any) -> Data:
    """Read data as the adapter's task reads them: its kind, and its columns where the data have them."""
    task = start.task
    if task is None:
        return read_source(source, text=text, label=label, **more)
    if isinstance(task, Mixture):
        raise DeltatuneError(
            f"{start.path} is a mixture of {', '.join(task.parts)}; name data for each: --data NAME=SOURCE"
        )
    given: dict[str, Any] = {"text": tuple(text), "label": label}
    asked = more.pop("task", None)
    kind = task.label_kind
    if asked == TASK_OF["pairs"] and type(task) is Generate:
        return read_source(source, task=asked, **given, **more)
    if asked is not None and asked != TASK_OF[kind]:
        raise DeltatuneError(f"--task {asked}: {start.path} was trained for {TASK_OF[kind]}; leave --task out")
    if not any(given.values()):
        try:
            return read_source(source, text=task.text, label=task.label or None, kind=kind, **more)
        except DeltatuneError:
            pass  # other columns, or other problems, which are raised below
    try:
        return read_source(source, kind=kind, **given, **more)
    except DeltatuneError:
        data = _pairs(source, given, more) if type(task) is Generate and asked is None else None
        if data is None:
            raise
        return data


def _pairs(source: str, columns: Mapping[str, Any], more: Mapping[str, Any]) -> Data | None:
    """The data as pairs of answers, if that is what they are."""
    try:
        data = read_source(source, **columns, **more)
    except DeltatuneError:
        return None
    return data if data.kind == "pairs" else None


def read_start_sources(start: Start, sources: Sequence[str], **options: Any) -> Data:
    """Read the data that a command names: one data set, or NAME=SOURCE for each part of a mixture."""
    named = named_sources(sources)
    if named is None:
        return read_rows(start, sources[0], **options)
    given = [name for name in ("text", "label", "task", "validation", "test") if options.get(name)]
    raise_all([f"--{name} is for a single data set; a mixture's parts have their own" for name in given])

    return read_parts(named, lambda name, source: read_rows(start.part(name), source, limit=options.get("limit")))


def open_continued(
    start: Start,
    data: Data,
    *,
    model: str | None = None,
    method: str | None = None,
    task: Mapping[str, Any] | None = None,
    head: Mapping[str, Any] | None = None,
    precision: str = "auto",
    new_labels: bool = False,
    seed: int = 0,
    quantize: str | None = None,
) -> Session:
    """Open the adapter on its model for the new data, ready to be trained.

    `method` and `head`, if given, must be the adapter's. `task` may set a metric, max_length and what may change after
    training. `new_labels` adds an output to the head for each label that it does not know. For an adapter of another
    library the task is inferred from the data and the head is new; its base is stored as `quantize` says, while that of
    an adapter of ours is stored as it was at training. Raises DeltatuneError listing what does not fit.
    """
    fields = {name: value for name, value in (task or {}).items() if value is not None}
    known = start.task
    session = (
        open_unknown(start.path, data, model, method, fields, head or {}, precision, seed, quantize)
        if known is None
        else _open_known(start, known, data, model, fields, head or {}, new_labels, seed, quantize)
    )
    if method is not None:
        _check_method(session, method, start.path)
    if isinstance(session.task, Prefer) and fields.get("reference", START) == START:
        load_start_(session.host, start.path)
        session = replace(session, task=replace(session.task, reference=START))
    return replace(session, precision=precision)


@dataclass(frozen=True)
class _Fit:
    """How new data fit a task."""

    problems: list[str]
    task: Task
    """The task for the new data: their columns, further labels."""
    new_labels: list[str]
    notes: list[str]


def _fit(known: Task, data: Data, fields: Mapping[str, Any]) -> _Fit:
    """The task with the columns and the labels of new data, or why it cannot have them."""
    if isinstance(known, Mixture):
        return _fit_parts(known, data, fields)
    if type(known) is Generate and data.kind == "pairs":
        wrong, task = preference_task(known, data, fields)
        return _Fit(wrong, task or known, [], [NOW_PREFERS])
    problems = [*_data_problems(known, data), *_field_problems(known, fields)]
    if problems:
        return _Fit(problems, known, [], [])
    unknown, notes = _unknown_labels(known, data), []
    changes: dict[str, Any] = {"text": data.text, **fields}
    if data.kind != "raw":
        changes["label"] = data.label
    if isinstance(known, ExtractiveQA) and not known.abstains and any(not row[data.label] for row in data.train):
        changes["abstains"] = True
        notes.append("the new data have questions without an answer, so the adapter learns to abstain")
    if unknown:
        changes["tags" if isinstance(known, Tag) else "labels"] = (*_labels(known), *unknown)
        if isinstance(known, Classify) and len(known.labels) == 2 and "positive" not in fields:
            changes["positive"] = ""
        notes.append(f"the head has a new output for {', '.join(unknown)}")
    return _Fit([], replace(known, **changes), unknown, notes)  # type: ignore[type-var]


def _fit_parts(known: Mixture, data: Data, fields: Mapping[str, Any]) -> _Fit:
    """The mixture with the columns of each part's new data."""
    parts = data.parts if isinstance(data, MixtureData) else {}
    if set(parts) != set(known.parts):
        return _Fit([f"it is a mixture of {', '.join(known.parts)}; name data for each of them"], known, [], [])
    own = fields.get("parts") or {}
    fits = {name: _fit(part, parts[name], own.get(name) or {}) for name, part in known.parts.items()}
    problems = [f"{name}: {problem}" for name, fit in fits.items() for problem in fit.problems]
    problems += [
        f"{name}: labels that the adapter does not know: {', '.join(map(repr, fit.new_labels))}; leave these rows out"
        for name, fit in fits.items()
        if fit.new_labels
    ]
    task = replace(
        known,
        parts={name: fit.task for name, fit in fits.items()},
        temperature=fields.get("temperature", known.temperature),
    )
    return _Fit(problems, task, [], [f"{name}: {note}" for name, fit in fits.items() for note in fit.notes])


def _open_known(
    start: Start,
    known: Task,
    data: Data,
    model: str | None,
    fields: Mapping[str, Any],
    head: Mapping[str, Any],
    new_labels: bool,
    seed: int,
    quantize: str | None,
) -> Session:
    """Open an adapter that knows its task."""
    fit = _fit(known, data, fields)
    problems = list(fit.problems)
    if fit.new_labels and not new_labels:
        names = ", ".join(map(repr, fit.new_labels))
        problems.append(
            f"the new data have labels that the adapter does not know: {names}; it knows {', '.join(_labels(known))}. "
            "Leave these rows out, or --new-labels adds an output to the head for each"
        )
    if new_labels and not problems and not fit.new_labels:
        problems.append("--new-labels: the new data have no new labels; leave it out")
    raise_all(problems, f"training of {start.path} cannot go on with {data.origin}:" if problems else "")
    session = open_adapter(start.path, model, quantize=quantize)
    config = getattr(session.adapter.head, "config", None)
    raise_all([
        f"{name}={value!r}: the adapter's head has {getattr(config, name, None)!r}; leave it out"
        for name, value in head.items()
        if value and getattr(config, name, None) != value
    ])  # fmt: skip
    if fit.new_labels:
        grow_head_(session, len(fit.new_labels), seed)
    note = f"training goes on with {start.path}, trained on {source_of(start.extra) or 'unknown data'}"
    return replace(session, task=fit.task, notes=(note, *fit.notes))


def _data_problems(known: Task, data: Data) -> list[str]:
    if data.kind != known.label_kind:
        return [f"it was trained for {TASK_OF[known.label_kind]} ({known.label_kind}); these are {data.kind}"]
    if len(data.text) != len(known.text) and data.kind != "text":
        return [f"it reads {len(known.text)} text columns ({', '.join(known.text)}), these have {len(data.text)}"]
    return []


def _labels(task: Task) -> tuple[str, ...]:
    return tuple(getattr(task, "tags", ()) or task.labels)


def _unknown_labels(known: Task, data: Data) -> list[str]:
    names = _labels(known)
    return [label for label in data.labels if label not in names] if names else []


def _field_problems(known: Task, fields: Mapping[str, Any]) -> list[str]:
    allowed = [name for name in (*CHANGEABLE, *known.inference_fields) if hasattr(known, name)]
    return [
        f"{name}={value!r}: the adapter was trained with {getattr(known, name, None)!r}; may change: "
        f"{', '.join(dict.fromkeys(allowed))}{nearest(name, allowed)}"
        for name, value in fields.items()
        if name not in allowed and getattr(known, name, None) != value
    ]


def _check_method(session: Session, method: str, path: Path) -> None:
    """Raise DeltatuneError if a method is not the adapter's."""
    trained: Method = session.adapter.method
    asked = session.fit(method)
    if trained not in (asked, asked.without_reparametrisation()):
        raise DeltatuneError(f"--method {method}: {path} is a {trained!r}; leave --method out to go on with it")


def grow_head_(session: Session, more: int, seed: int) -> None:
    """Give the head further outputs, initialised as new ones are; the old ones keep their values."""
    import torch

    old = session.adapter.head
    if not isinstance(old, Head):
        raise DeltatuneError("this adapter has no head that could get outputs for new labels")
    new = Head(replace(old.config, outputs=old.config.outputs + more), seed).to(old.out.weight)
    with torch.no_grad():
        for name, parameter in new.named_parameters():
            before = dict(old.named_parameters())[name]
            parameter[: len(before)].copy_(before)
    session.adapter.head = new


def source_of(extra: Mapping[str, Any]) -> str:
    """The data of an adapter's training, as the user named them."""
    return str((extra.get("data") or {}).get("source") or "")
