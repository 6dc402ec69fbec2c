"""Opening of sessions: a base on its device, the task of the data, or a trained adapter from its folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from deltatune.core.adapter_formats import format_of
from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.core.host import Host
from deltatune.core.quantization.schemes import scheme_text
from deltatune.data import Data
from deltatune.models.hardware import best_device
from deltatune.models.loading import load_backbone
from deltatune.models.pipelines import load_pipeline
from deltatune.store import adapter_folder, run_folder
from deltatune.store.fingerprint import quantizations
from deltatune.tasks import Task, task_from_json, tokenizer_fingerprint
from deltatune.tasks.auto_task import check_task_fields, task_classes, task_for
from deltatune.tasks.media_rows import check_data, what_reads
from deltatune.training.session import NAME, Session


def open_host(
    model: str, loads: Any = "row", pooler: bool = False, quantize: str | None = None
) -> tuple[Host, PreTrainedTokenizerBase]:
    """A host around a model on the best device, and the model's tokenizer; the other arguments as `load_backbone`'s."""
    if loads == "pipeline":
        pipeline = load_pipeline(model, best_device(), quantize)
        return Host(pipeline.denoiser), pipeline  # type: ignore[return-value]  # in the tokenizer's place
    backbone, tokenizer = load_backbone(model, pooler=pooler, answers=loads, quantize=quantize)
    return Host(backbone.to(best_device())), tokenizer  # type: ignore[arg-type]


OpenBase = Callable[[str, Any, bool, str | None], tuple[Host, PreTrainedTokenizerBase]]
"""What opens a base, as `open_host` does: (model, kind of model, whether its pooler is read, quantisation)."""


def open_session(
    model: str,
    data: Data,
    task: Mapping[str, Any] | None = None,
    head: Mapping[str, Any] | None = None,
    objective: Task | None = None,
    precision: str = "auto",
    loads: str = "",
    open_base: OpenBase = open_host,
    quantize: str | None = None,
) -> Session:
    """Load a model and choose the task of the data; no adapter is attached yet.

    `task` sets fields of the task (None leaves a field to the data), `head` fields of the classifier; `objective` takes
    the place of the data's task; `loads` is the kind of model where it is not the task's own; `open_base` loads it, or
    returns one that is open already. Raises DeltatuneError for unknown fields before the model is loaded, and for a
    model that cannot do the task.
    """
    fields = {name: value for name, value in (task or {}).items() if value is not None}
    kinds: list[Any] = [objective] if objective is not None else task_classes(data, fields)
    head = head or {}
    rows = [kind for kind in kinds if kind.answers == "row" and kind.loads == "row"]  # head options are for these
    _check_head(rows[0].answers if rows else "text" if kinds[0].loads == "words" else kinds[0].answers, head)
    if objective is None:
        check_task_fields(data, fields)
    scheme = scheme_text(quantize)
    host, tokenizer = open_base(model, loads or loads_of(kinds), reads_pooler(head), scheme)
    if quantize is not None and scheme is None and (labels := quantizations(host)):
        raise DeltatuneError(
            f"quantize: none means plain weights, and {model} is stored in {', '.join(labels)}; give the folder that "
            "it was made from, or leave --quantize out"
        )
    check_data(data, tokenizer)
    head = head if rows else {}
    if objective is not None:
        return Session(model, host, tokenizer, objective, head, precision, quantize=scheme)
    chosen = task_for(data, host.model.config, tokenizer, fields)  # type: ignore[arg-type]
    return Session(
        model, host, tokenizer, chosen.task, head, precision, notes=tuple(chosen.notes), quantize=scheme, loads=loads
    )


def loads_of(kinds: Sequence[Any]) -> Any:
    """The kind of model that holds all that these tasks, or classes of tasks, need: that of one or of a mixture."""
    needed = {kind.loads for kind in kinds}
    return next((loads for loads in ("text", "words") if loads in needed), kinds[0].loads)


def reopened(session: Session) -> Session:
    """A session that came from another process, without its host: its model is opened again."""
    needed = {part.loads for part in getattr(session.task, "parts", {"": session.task}).values()}
    loads = session.loads or next((kind for kind in ("text", "words") if kind in needed), session.task.loads)
    host, tokenizer = open_host(session.model, loads, reads_pooler(session.head), session.quantize)
    return replace(session, host=host, tokenizer=tokenizer)


def open_adapter(
    folder: str | Path,
    model: str | None = None,
    other_base: bool = False,
    fields: Mapping[str, Any] | None = None,
    part: str | None = None,
    quantize: str | None = None,
) -> Session:
    """Load a trained adapter with its model and task. `folder` is the adapter's, or that of its training run.

    `model` is where the model is now; by default where it was at training. `fields` replaces fields of the task that
    may change after training. `part` opens one part of a mixture. `quantize` stores the base in another way than at
    training (`none` for the plain weights), which `other_base` has to accept.
    Raises DeltatuneError for a folder, a model or a tokenizer that does not fit.
    """
    path = run_folder.find_adapter(folder)
    format_of(path)  # raises if there is no adapter at all
    config = adapter_folder.read_config(path) if adapter_folder.knows(path) else {}
    extra = config.get("extra") or {}
    if "task" not in extra:
        raise DeltatuneError(
            f"{path} does not say what it was trained for (labels and columns); "
            "only adapters of `deltatune train` do, others are loaded from Python: host.load(folder)"
        )
    stored = task_from_json(extra["task"])
    task = with_fields(stored, fields or {}) if part is None else stored
    trained_on = str(extra.get("model") or config["base"].get("name"))
    pooler = reads_pooler((config.get("head") or {}).get("config"))
    trained_as = scheme_text(extra.get("quantize"))
    stored_as = trained_as if quantize is None else scheme_text(quantize)
    if stored_as != trained_as and not other_base:
        raise DeltatuneError(
            f"{path} was trained on a base {stored_text(trained_as)}, and {stored_text(stored_as)} it is another one: "
            "leave --quantize out, or accept that with --other-base (other_base=True)"
        )
    try:
        host, tokenizer = open_host(
            model or trained_on, "words" if extra.get("loads") == "words" else task.loads, pooler, stored_as
        )
    except DeltatuneError as error:
        if model is not None:
            raise
        raise DeltatuneError(
            f"cannot load the model that {path} was trained on; --model says where it is.\n{error}"
        ) from error
    host.load(path, name=NAME, other_base=other_base)
    check_tokenizer(path, tokenizer, extra)
    precision = str((extra.get("settings") or {}).get("precision") or "auto")
    session = Session(model or trained_on, host, tokenizer, task, precision=precision, extra=extra, quantize=stored_as)
    if part is None:
        return session
    session = session.for_part(part)
    return replace(session, task=with_fields(session.task, fields or {}))


def stored_text(scheme: str | None) -> str:
    """How a base is stored, in a sentence: `in nf4`, `without quantisation`."""
    return "without quantisation" if scheme is None else f"in {scheme}"


def with_fields(task: Task, fields: Mapping[str, Any]) -> Task:
    """A trained task with other values of fields that may change after training; DeltatuneError for other fields."""
    allowed = task.inference_fields
    choices = f"can be set: {', '.join(allowed)}" if allowed else "nothing can be set for this task"
    raise_all([
        f"--set {name}: cannot be changed after training{nearest(name, allowed)}; {choices}"
        for name in fields
        if name not in allowed
    ])  # fmt: skip
    return replace(task, **fields) if fields else task  # type: ignore[type-var]


def reads_pooler(head: Mapping[str, Any] | None) -> bool:
    """Whether a head, as plain data, or one of a mixture's heads reads the base's pooler."""
    parts = (head or {}).get("parts") or {}
    return (head or {}).get("pooling") == "pooler" or any(reads_pooler(part) for part in parts.values())


def _check_head(answers: str, head: Mapping[str, Any]) -> None:
    """Raise DeltatuneError for head options of a task without a pooled head."""
    if answers == "row":
        return
    why = "classifies every token" if answers == "token" else "uses the language-model head"
    names = [name for name, value in head.items() if value]
    raise_all([f"{name}={head[name]!r}: this task {why}; head options do not apply" for name in names])


def check_tokenizer(path: Path | str, tokenizer: PreTrainedTokenizerBase, extra: Mapping[str, Any]) -> None:
    """Raise DeltatuneError if an adapter's folder says that it was trained with another tokenizer."""
    trained = extra.get("tokenizer")
    if trained is not None and trained != tokenizer_fingerprint(tokenizer):
        raise DeltatuneError(
            f"{path} was trained with another {what_reads(tokenizer)}. Give the model it was trained on with --model"
        )
