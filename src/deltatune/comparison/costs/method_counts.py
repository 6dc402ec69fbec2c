"""Counts of methods on a model from its config alone: trained parameters, the size of the file, memory in training.

The model has shapes and no weights, so that a model of any size is counted in seconds on any machine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from deltatune.comparison.costs.inference_costs import added_tokens
from deltatune.core.adapter import Adapter
from deltatune.core.budget import fit_budget
from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.host import Host
from deltatune.core.method import Method
from deltatune.core.registry import parse, registry
from deltatune.models.architecture import family
from deltatune.models.loading import empty_backbone, find_config
from deltatune.models.shape_run import Device, LiveMemory, kept_for_backward, recomputed_shapes, shapes_only
from deltatune.store.tensors import file_size
from deltatune.tasks import longest_input
from deltatune.tasks.heads import Head, HeadConfig
from deltatune.training.forward import adapter_logits, reads_decoder_states
from deltatune.training.inference.prediction import free_positions
from deltatune.training.scaling.gradient_checkpointing import gradient_checkpointing

ADAMW_STATES = 2
"""Tensors that AdamW keeps for each trained one."""
NAME = "adapter"
MOST = 1_000_000_000
"""Largest number of classes, rows and tokens: the bytes of larger tensors are beyond what 64 bits can count."""


@dataclass(frozen=True)
class CountedTraining:
    """The training whose memory is forecast: AdamW on rows of `max_length` tokens without padding."""

    task: Literal["classify", "tag", "lm"] = "classify"
    """A class for each row, one for each token, or the language-model head with a loss at every token."""
    classes: int = 2
    """Outputs of the head; 1 for regression."""
    batch_size: int = 32
    """Rows of one forward pass."""
    max_length: int = 128
    """Tokens of a row; fewer where the method and the model's positions leave less."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the base's weights and of its activations; adapters and heads are float32."""
    checkpointing: bool = False
    """Gradient checkpointing."""
    device: Device = "cpu"
    """Whose kernels run: a GPU's attention and dropout keep less for the backward pass."""

    def __post_init__(self) -> None:
        wrong = {name: getattr(self, name) for name in ("classes", "batch_size", "max_length")}
        raise_all([f"{name} must be at least 1, not {value}" for name, value in wrong.items() if value < 1])
        raise_all([f"{name} must be at most {MOST:,}, not {value}" for name, value in wrong.items() if value > MOST])


@dataclass(frozen=True)
class Memory:
    """Bytes that one training step needs."""

    weights: int
    """The base's parameters and buffers."""
    adapter: int
    """The adapter's and the head's, with fixed projections and copies of the base's weights."""
    gradients: int
    """Of the trained parameters."""
    optimizer: int
    """AdamW's two moments of the trained parameters."""
    activations: int
    """Kept by the forward pass for the backward pass."""
    peak: int
    """The most at once in a step: all of the above, and what operations make on the way."""


@dataclass(frozen=True)
class MethodCount:
    """One method on one model."""

    method: str
    """Its text form."""
    trained: int | None = None
    """Trained parameters, the head left out."""
    share: float | None = None
    """Of the base's parameters."""
    head: int | None = None
    """Parameters of the task's head."""
    tokens: int | None = None
    """Tokens by which prompts and prefixes make each text longer."""
    file_bytes: int | None = None
    """Size of `adapter.safetensors`, the head included."""
    memory: Memory | None = None
    memory_problem: str | None = None
    """Why memory cannot be forecast on this model; `memory` is None then."""
    problem: str | None = None
    """Why this model cannot take it; all else is None then."""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True)
class ModelCount:
    """A model without adapters."""

    model: str
    architecture: str
    params: int
    """Parameters of the base, tied ones once, task heads left out."""
    file_bytes: int
    """Bytes of its weights on disk in the chosen type: also those of one fine-tuned copy."""


class CountingHost:
    """A model from its config, with shapes and without weights, on which methods are counted."""

    def __init__(self, model: str, training: CountedTraining | None = None) -> None:
        """Raises DeltatuneError for a model without a config, and one without the head that the task needs."""
        self.training = training or CountedTraining()
        self.name = model
        _, config = find_config(model)
        loads: Any = "row"
        if self.training.task == "lm":
            loads = "mask" if family(config) == "encoder" else "text"
        with shapes_only(self.training.device):
            backbone = empty_backbone(model, loads)
            self.host = Host(backbone.to(getattr(torch, self.training.dtype)))
        positions = longest_input(self.host.model)
        if positions is not None and self.training.max_length > positions:
            self.training = dataclasses.replace(self.training, max_length=positions)

    @property
    def model(self) -> ModelCount:
        """The model itself."""
        sites = self.host.sites
        size = _bytes(self.host.model.parameters())
        return ModelCount(self.name, sites.facts.architecture, sites.base_params, size)

    def count(self, method: str | Method, budget: str | int | None = None) -> MethodCount:
        """Count a method, in the largest size that fits a budget if one is given.

        Raises DeltatuneError for a text that is not a method; a method that the model cannot take says why.
        """
        parsed = parse(method)
        training, host = self.training, self.host
        text = repr(parsed)
        try:
            if budget is not None:
                parsed = fit_budget(parsed, host.sites, budget)
                text = repr(parsed)
            with shapes_only(training.device):
                adapter = host.attach(NAME, parsed, head=self._head())
                if not host.trainable(NAME):
                    raise DeltatuneError("it trains only a head, and this task uses the language-model head")
                memory = self._memory(adapter)
                return MethodCount(
                    text,
                    trained=adapter.count,
                    share=adapter.count / host.sites.base_params,
                    head=adapter.head_count,
                    tokens=added_tokens(adapter),
                    file_bytes=file_size(adapter.without_reparametrisation().tensors()),
                    memory=memory if isinstance(memory, Memory) else None,
                    memory_problem=memory if isinstance(memory, str) else None,
                )
        except DeltatuneError as error:
            return MethodCount(text, problem=str(error))
        finally:
            if NAME in host.adapters:
                host.detach(NAME)
            host.model.zero_grad()
            host.model.eval()

    def _head(self) -> Head | Literal[False]:
        training = self.training
        if training.task == "lm":
            return False
        pooling: Literal["none", "mean"] = "none" if training.task == "tag" else "mean"
        return Head(HeadConfig(pooling, outputs=training.classes, width=self.host.sites.facts.hidden))

    # ---- memory

    def _memory(self, adapter: Adapter) -> Memory | str:
        """The memory of a step, or why it cannot be forecast: counts do not depend on it."""
        reads = str(getattr(self.host.model, "main_input_name", "input_ids"))
        if reads != "input_ids":
            return f"this model reads {reads}, and steps are forecast for texts"
        try:
            return self._step(adapter)
        except DeltatuneError:
            raise
        except Exception as error:  # the model's own code, of whatever kind: it may look at values, as experts do
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            return f"this model cannot be run without values: {reason[:120]}"

    def _step(self, adapter: Adapter) -> Memory:
        host, training = self.host, self.training
        base = dict(host.base_tensors()).values()  # also those that the adapter's own weights stand in for
        fixed = [*base, *host.model.parameters(), *host.model.buffers()]
        own = _bytes([*adapter.parameters(), *adapter.buffers()])
        everything = _bytes(fixed)
        trained = _bytes(parameter for _, parameter in host.trainable(NAME))
        host.model.train(adapter.count > 0)  # a base without anything to train runs without dropout
        kept, peak = 0, 0
        with (
            gradient_checkpointing(host.model, training.checkpointing),
            recomputed_shapes(host.model, training.device),
            LiveMemory() as live,
        ):
            losses: list[Tensor] = []
            kept = kept_for_backward(lambda: losses.append(self._loss()), fixed)
            if training.checkpointing:
                kept = live.live  # the inputs of the blocks are kept outside of torch's graph
            torch.autograd.backward(losses.pop())
            peak = live.peak
        optimizer = ADAMW_STATES * trained
        return Memory(everything - own, own, trained, optimizer, kept, everything + optimizer + max(peak, trained))

    def _loss(self) -> Tensor:
        """The loss of one forward pass on a full batch."""
        training, host = self.training, self.host
        free = free_positions(host, NAME)
        length = training.max_length if free is None else max(1, min(training.max_length, free))
        ids = torch.zeros(training.batch_size, length, dtype=torch.long)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if training.task != "lm":
            logits = adapter_logits(host, NAME, batch)
            labels = ids if training.task == "tag" else ids[:, 0]
            return _cross_entropy(logits, labels)
        more: dict[str, Any] = {"decoder_input_ids": ids} if reads_decoder_states(host) else {}
        config: Any = host.model.config
        caching = getattr(config, "use_cache", False)
        if caching:  # by the config: said in the call, it may be a step of generation without a cache
            config.use_cache = False
        try:
            logits = host.model(**batch, **more).logits
        finally:
            if caching:
                config.use_cache = caching
        return _cross_entropy(logits[:, -length:], ids)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    flat = logits.flatten(0, -2).float()
    if flat.shape[-1] == 1:
        return F.mse_loss(flat[:, 0], labels.flatten().float())
    return F.cross_entropy(flat, labels.flatten())


def _bytes(tensors: Iterator[Any] | Sequence[Any]) -> int:
    """Bytes of tensors, those that share their memory once."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def all_methods() -> list[str]:
    """Every registered method and short form at its defaults, equal ones once."""
    return list(dict.fromkeys(repr(maker()) for maker in registry().values()))


def storage(model: ModelCount, count: MethodCount, tasks: int) -> dict[str, int]:
    """Bytes on disk of the adapters of many tasks beside one base, and of as many fine-tuned copies of the model."""
    return {"adapters": model.file_bytes + tasks * (count.file_bytes or 0), "copies": tasks * model.file_bytes}
