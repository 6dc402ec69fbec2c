"""Session: a model with a task, a tokenizer and one adapter on it, opened in one place for every command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import nn
from transformers import PreTrainedTokenizerBase

from deltatune.core.adapter import Adapter
from deltatune.core.budget import fit_budget
from deltatune.core.errors import DeltatuneError
from deltatune.core.host import Host
from deltatune.core.method import Method
from deltatune.core.registry import parse
from deltatune.store.fingerprint import base_identity, identity_for
from deltatune.tasks import Encoded, Mixture, Task, longest_input, tokenizer_fingerprint
from deltatune.tasks.auto_task import shorter
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
