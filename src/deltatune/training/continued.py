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
from deltatune.core.method import Method
from deltatune.core.registry import parse
from deltatune.core.trained_rows import overlap
from deltatune.data import Data, LabelKind, read
from deltatune.data.dataset import TASK_OF
from deltatune.store import adapter_folder, run_folder
from deltatune.store.atomic_files import digest, read_json
from deltatune.store.fingerprint import contents_of
from deltatune.store.loralib import load_loralib
from deltatune.tasks import Encoded, Head, Mixture, Task, task_from_json
from deltatune.training.session import Session, open_adapter, open_session

CHANGEABLE = ("metric", "max_length")
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

    def parents(self) -> list[dict[str, Any]]:
        """The adapters that the new one comes from, the oldest first, as plain data."""
        task = self.task
        parent = {
            "folder": str(self.path),
            "fingerprint": digest(self.path) if self.path.is_file() else contents_of(str(self.path)),
            "method": self.extra.get("method"),
            "data": self.extra.get("data"),
            "text": list(task.text) if task else [],
            "label": task.label if task else "",
        }
        return [*(self.extra.get("parents") or ()), parent]

    def check_apart(self, folder: Path) -> None:
        """Raise DeltatuneError for a run's folder that would replace the adapter it starts from."""
        ours, theirs = folder.resolve(), self.path.resolve()
        if ours in (theirs, *theirs.parents) or theirs in ours.parents:
            raise DeltatuneError(f"{folder} holds the adapter that training starts from; choose another folder (--out)")


def read_start(path: str | Path) -> Start:
    """The adapter of a folder, of a training run's folder, or of a loralib file. Raises DeltatuneError for others."""
    given = Path(path).expanduser()
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
        return read(source, text=text, label=label, **more)
    if isinstance(task, Mixture):
        raise DeltatuneError(f"{start.path} is a mixture of tasks; training goes on with a mixture of the same parts")
    asked = more.pop("task", None)
    kind = task.label_kind
    if asked is not None and asked != TASK_OF[kind]:
        raise DeltatuneError(f"--task {asked}: {start.path} was trained for {TASK_OF[kind]}; leave --task out")
    given = {"text": tuple(text), "label": label}
    if not text and label is None:
        try:
            return read(source, text=task.text, label=task.label or None, kind=kind, **more)
        except DeltatuneError:
            pass  # other columns, or other problems, which are raised below
    return read(source, kind=kind, **given, **more)  # type: ignore[arg-type]


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
) -> Session:
    """Open the adapter on its model for the new data, ready to be trained.

    `method` and `head`, if given, must be the adapter's. `task` may set a metric, max_length and what may change after
    training. `new_labels` adds an output to the head for each label that it does not know. For an adapter of another
    library the task is inferred from the data and the head is new. Raises DeltatuneError listing what does not fit.
    """
    fields = {name: value for name, value in (task or {}).items() if value is not None}
    known = start.task
    session = (
        _open_foreign(start, data, model, method, fields, head or {}, precision, seed)
        if known is None
        else _open_known(start, known, data, model, fields, head or {}, new_labels, seed)
    )
    if method is not None:
        _check_method(session, method, start.path)
    return replace(session, precision=precision)


def _open_known(
    start: Start,
    known: Task,
    data: Data,
    model: str | None,
    fields: Mapping[str, Any],
    head: Mapping[str, Any],
    new_labels: bool,
    seed: int,
) -> Session:
    """Open an adapter that knows its task."""
    problems = _data_problems(known, data)
    unknown = [] if problems else _unknown_labels(known, data)
    if unknown and not new_labels:
        names = ", ".join(map(repr, unknown))
        problems.append(
            f"the new data have labels that the adapter does not know: {names}; it knows {', '.join(_labels(known))}. "
            "Leave these rows out, or --new-labels adds an output to the head for each"
        )
    if new_labels and not unknown:
        problems.append("--new-labels: the new data have no new labels; leave it out")
    problems += _field_problems(known, fields)
    raise_all(problems, f"training of {start.path} cannot go on with {data.origin}:" if problems else "")
    session = open_adapter(start.path, model)
    config = getattr(session.adapter.head, "config", None)
    raise_all([
        f"{name}={value!r}: the adapter's head has {getattr(config, name, None)!r}; leave it out"
        for name, value in head.items()
        if value and getattr(config, name, None) != value
    ])  # fmt: skip
    notes = [f"training goes on with {start.path}, trained on {_source(start.extra) or 'unknown data'}"]
    changes: dict[str, Any] = {"text": data.text, **fields}
    if data.kind != "raw":
        changes["label"] = data.label
    if data.kind == "span" and not known.abstains and any(not row[data.label] for row in data.train):  # type: ignore[attr-defined]
        changes["abstains"] = True
        notes.append("the new data have questions without an answer, so the adapter learns to abstain")
    if unknown:
        grow_head_(session, len(unknown), seed)
        name = "tags" if hasattr(known, "tags") else "labels"
        changes[name] = (*_labels(known), *unknown)
        if len(_labels(known)) == 2 and hasattr(known, "positive") and "positive" not in fields:
            changes["positive"] = ""
        notes.append(f"the head has a new output for {', '.join(unknown)}")
    return replace(session, task=replace(session.task, **changes), notes=tuple(notes))  # type: ignore[type-var]


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
    allowed = (*CHANGEABLE, *known.inference_fields)
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


def _open_foreign(
    start: Start,
    data: Data,
    model: str | None,
    method: str | None,
    fields: Mapping[str, Any],
    head: Mapping[str, Any],
    precision: str,
    seed: int,
) -> Session:
    """Open an adapter that does not say its task, such as one of PEFT: the data say it, and the head is new."""
    path = start.path
    alpha = None
    if path.is_file():
        alpha = getattr(parse(method), "alpha", None) if method else None
        if alpha is None:
            raise DeltatuneError(
                f"{path} is a loralib checkpoint, which does not hold its alpha: name its method, such as "
                '--method "LoRA(r=8, alpha=16)"'
            )
    session = open_session(model or _model_of(path), data, fields, head, precision=precision)
    if alpha is not None:
        load_loralib(session.host, path, alpha=float(alpha), name=session.name)
    else:
        session.host.load(path, name=session.name)
    adapter = session.adapter
    wanted = session.make_head(seed)
    note = f"training goes on with {path}, whose task is unknown: it is that of the data"
    if wanted and adapter.head is None:
        adapter.head = wanted.to(next(session.host.model.parameters()).device)
        note += ", with a new head"
    shapes = [{name: tuple(p.shape) for name, p in each.named_parameters()} for each in (adapter.head, wanted) if each]
    if len(shapes) == 2 and shapes[0] != shapes[1]:
        raise DeltatuneError(f"the head of {path} has tensors {shapes[0]}, these data need {shapes[1]}")
    return replace(session, notes=(*session.notes, note))


def _model_of(path: Path) -> str:
    """The base that an adapter of another library names."""
    if path.is_file():
        raise DeltatuneError(f"{path} does not name its model; say it with --model")
    if adapter_folder.knows(path):
        name = (adapter_folder.read_config(path).get("base") or {}).get("name")
    else:
        name = read_json(path / "adapter_config.json").get("base_model_name_or_path")
    if not name:
        raise DeltatuneError(f"{path} does not name its model; say it with --model")
    return str(name)


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


# ---- forgetting: the data of earlier trainings


@dataclass(frozen=True)
class EarlierData:
    """The test rows of an earlier training, encoded for the adapter."""

    source: str
    task: Task
    encoded: Encoded


def _source(extra: Mapping[str, Any]) -> str:
    return str((extra.get("data") or {}).get("source") or "")


def earlier_data(session: Session, start: Start, new_source: str) -> tuple[list[EarlierData], list[str]]:
    """The test rows of the earlier trainings that can still be read, and a note for each that cannot.

    Data that the new training reads itself are left out, and so are test rows most of which were trained on: then the
    splits are other ones than at that training.
    """
    data: dict[str, EarlierData] = {}
    notes = []
    for parent in start.parents():
        source = _source(parent)
        if not source or source in data or _same_source(source, new_source):
            continue
        kind: LabelKind = session.task.label_kind
        task = replace(session.task, text=tuple(parent["text"]))  # type: ignore[type-var]
        if parent["label"]:
            task = replace(task, label=parent["label"])  # type: ignore[type-var]
        try:
            rows = read(source, text=task.text, label=task.label or None, kind=kind).test
            encoded = replace(session, task=task).encode(rows)
        except DeltatuneError as error:
            notes.append(f"scores on the earlier data {source} are left out: {str(error).splitlines()[0]}")
            continue
        known, hashes = session.adapter.trained_rows, encoded.row_hashes
        if known is not None and hashes is not None and 2 * overlap(hashes, known.train).rows > len(hashes):
            notes.append(f"scores on the earlier data {source} are left out: its test rows were trained on")
            continue
        data[source] = EarlierData(source, task, encoded)
    return list(data.values()), notes


def _same_source(one: str, other: str) -> bool:
    return one == other or (Path(one).exists() and Path(one).resolve() == Path(other).resolve())
