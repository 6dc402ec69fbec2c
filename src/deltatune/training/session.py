"""Session: a model with a task, a tokenizer and one adapter on it, opened in one place for every command."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from torch import nn
from transformers import PreTrainedTokenizerBase

from deltatune.core.adapter import Adapter
from deltatune.core.adapter_formats import format_of
from deltatune.core.budget import fit_budget
from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.core.host import Host
from deltatune.core.method import Method
from deltatune.core.quantization.schemes import scheme_text
from deltatune.core.registry import parse
from deltatune.data import Data
from deltatune.models.hardware import best_device
from deltatune.models.loading import load_backbone
from deltatune.models.pipelines import load_pipeline
from deltatune.store import adapter_folder, run_folder
from deltatune.store.fingerprint import base_identity, identity_for, quantizations
from deltatune.tasks import Encoded, Mixture, Task, longest_input, task_from_json, tokenizer_fingerprint
from deltatune.tasks.auto_task import check_task_fields, shorter, task_classes, task_for
from deltatune.tasks.media_rows import check_data, what_reads
from deltatune.tasks.task import Row
from deltatune.tasks.tokenization import with_token_ids
from deltatune.training.inference.prediction import encode_for, free_positions, predict
from deltatune.training.settings import Settings
from deltatune.training.start_adapter import find_start_
from deltatune.training.train_adapter import Outcome, train

NAME = "adapter"
"""Name of a session's adapter on its host."""


@dataclass(frozen=True)
class Session:
    """Everything that encoding, training and prediction of one adapter need."""

    model: str
    """The model's folder, its name on the hub, or builtin."""
    host: Host
    tokenizer: PreTrainedTokenizerBase
    task: Task
    head: Mapping[str, Any] = field(default_factory=dict)
    """Fields of a new head that differ from the defaults."""
    precision: str = "auto"
    """Precision of predictions: auto, float32 or bfloat16."""
    name: str = NAME
    """Name of the adapter on the host."""
    notes: tuple[str, ...] = ()
    """What was inferred from the data, in sentences."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What training stored in the adapter's folder beside the tensors; empty for a new adapter."""
    weight: float = 1.0
    """Factor on the adapter's changes in predictions; its head is used whole."""
    mixture: Mixture | None = None
    """The whole mixture, if `task` is one of its parts."""
    part: str | None = None
    """The name of that part."""
    quantize: str | None = None
    """How the base's linear maps are stored, such as nf4; None: as they were published."""
    loads: str = ""
    """Kind of model that was loaded where it is not the task's own: "words" for the language model of its family."""

    @property
    def adapter(self) -> Adapter:
        """The adapter that is attached."""
        return self.host.adapters[self.name]

    def fit(self, method: str | Method, budget: str | int | None = None) -> Method:
        """A method with its initial text as token ids, in the largest size that fits the budget.

        Raises DeltatuneError for a text that is not a method and for a budget below the smallest size.
        """
        fitted = with_token_ids(parse(method), self.tokenizer, self.task)
        return fitted if budget is None else fit_budget(fitted, self.host.sites, budget)

    def make_head(self, seed: int) -> nn.Module | Literal[False]:
        """A new head for the task; False for tasks that use the language-model head."""
        head = self.task.make_head(self.host.model.config, seed, **self.head)  # type: ignore[arg-type]
        return False if head is None else head

    def for_part(self, name: str) -> Session:
        """The session of one part of a mixture: its task, and its head. Raises DeltatuneError for another task."""
        if not isinstance(self.task, Mixture):
            raise DeltatuneError(f"--part {name}: this adapter has one task, no mixture; leave --part out")
        return replace(self, task=self.task.part(name), mixture=self.task, part=name)

    def weighted(self, weight: float) -> Session:
        """The same session with the adapter's changes multiplied by a weight in predictions.

        Raises DeltatuneError for an adapter that has no such scale: whole weights, and soft prompts, whose tokens stay
        in the text whatever their weight.
        """
        if weight != 1 and any(site.kind == "weight" for site in self.adapter.sites.values()):
            raise DeltatuneError(
                f"weight {weight:g}: {self.adapter.method!r} replaces weights of the base, which have no scale; only "
                "weight 1 is possible"
            )
        self.host.use({self.name: weight})
        self.host.use(self.name)
        tokens = self.adapter.needs.virtual_tokens
        if weight != 1 and tokens:
            raise DeltatuneError(
                f"weight {weight:g}: {self.adapter.method!r} puts {tokens} virtual tokens into the text, which stay "
                "there whatever their weight; only weight 1 is possible"
            )
        return replace(self, weight=weight)

    def attach(self, method: Method, seed: int, head: nn.Module | Literal[False], **more: Any) -> Adapter:
        """Attach a new adapter with this head; `more` goes to `Host.attach`."""
        return self.host.attach(self.name, method, seed=seed, head=head, **more)

    def detach(self) -> None:
        """Detach the adapter if there is one."""
        if self.name in self.host.adapters:
            self.host.detach(self.name)

    @property
    def positions(self) -> int | None:
        """Longest input of the model in tokens; None if it has no limit."""
        return longest_input(self.host.model)

    def free_positions(self) -> int | None:
        """Positions that the attached adapter leaves to a text; None if the model has no limit."""
        return free_positions(self.host, self.name)

    def limited(self, positions: int | None) -> Session:
        """The same session with texts of at most `positions` tokens."""
        return replace(self, task=shorter(self.task, positions))

    def encode(self, rows: Sequence[Row], labelled: bool = True) -> Encoded:
        """Encode rows for the attached adapter. Raises DeltatuneError for rows that the task refuses."""
        return encode_for(self.host, self.name, self.task, rows, self.tokenizer, labelled)

    def train(
        self, rows: Sequence[Row] | Encoded, validation: Sequence[Row] | Encoded | None, settings: Settings, **more: Any
    ) -> Outcome:
        """Train the attached adapter as `deltatune.training.train` does; `more` goes to it."""
        return train(self.host, self.name, self.task, rows, validation, self.tokenizer, settings, **more)

    def predict(self, rows: Sequence[Row] | Encoded, batch_size: int = 64) -> Any:
        """Answers of the attached adapter, as `task.decode` and `task.score` read them."""
        task = self.task
        find_start_(self.host, task, self.extra, rows)
        if self.mixture is not None and self.part is not None:
            task = replace(self.mixture, parts={**self.mixture.parts, self.part: self.task})
        host, tokenizer = self.host, self.tokenizer
        return predict(host, self.name, task, rows, tokenizer, batch_size, self.precision, self.part, self.weight)

    def score(self, encoded: Encoded) -> dict[str, float]:
        """Every metric of the attached adapter on encoded rows."""
        return self.task.score(self.predict(encoded), encoded.references)

    def base_record(self, attached: bool = False) -> dict[str, str]:
        """Fingerprints of the base and the tokenizer, and how the base is quantised: another model may come to have the
        same name. attached: of what the adapter on it depends on, without a language-model head that it does not read.
        """
        base = identity_for(self.host, self.name) if attached else base_identity(self.host)
        stored = {"quantized": ", ".join(base["quantized"])} if "quantized" in base else {}
        stored |= {"tokenizer": tokenizer_fingerprint(self.tokenizer)}
        return {"shapes": base["shapes"], "content": base["content"], **stored}

    def to_json(self) -> dict[str, Any]:
        """What an adapter's folder holds so that `open_adapter` can open it without further options."""
        return {
            "model": self.model,
            "task": self.task.to_json(),
            "tokenizer": tokenizer_fingerprint(self.tokenizer),
            **({"quantize": self.quantize} if self.quantize else {}),
            **({"loads": self.loads} if self.loads not in ("", self.task.loads) else {}),
        }


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
