"""Forecast of the memory of a training step: the step itself runs on shapes alone, and its tensors are counted."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltatune.core.adapter import Adapter
from deltatune.core.errors import DeltatuneError, first_line, raise_all
from deltatune.core.host import Host
from deltatune.core.quantization.quantized_linear import QuantizedLinear
from deltatune.core.quantization.schemes import FourBit, Scheme, read_scheme
from deltatune.core.quantization.stored_weights import is_transposed, weight_of
from deltatune.models.architecture import family
from deltatune.models.shape_run import Device, LiveMemory, kept_for_backward, recomputed_shapes
from deltatune.training.forward import adapter_logits, reads_decoder_states, selected_states
from deltatune.training.inference.prediction import free_positions
from deltatune.training.optimizers.state_bytes import CHUNK, OPTIMIZERS, OptimizerName, is_8bit, is_paged, state_bytes
from deltatune.training.scaling.activation_offload import SMALLEST
from deltatune.training.scaling.gradient_checkpointing import gradient_checkpointing

NAME = "adapter"
MOST = 1_000_000_000
"""Largest number of classes, rows and tokens: the bytes of larger tensors are beyond what 64 bits can count."""
PROCESS = 446_000_000
"""Bytes of Python and its libraries in training, without a model: torch 2.13 for CPUs and transformers 5.23."""
BITSANDBYTES = 43_000_000
"""Bytes that bitsandbytes 0.50 takes besides, which 4-bit weights load for its kernels where it is installed."""
GPU_CONTEXT = 600_000_000
"""Bytes of a GPU's memory that CUDA itself takes: 0.4 to 0.6 GB by kind of GPU."""


@dataclass(frozen=True)
class CountedTraining:
    """The training whose memory is forecast: rows of `max_length` tokens without padding."""

    task: Literal["classify", "tag", "lm"] = "classify"
    """A class for each row, one for each token, or the language-model head with a loss at every token."""
    classes: int = 2
    """Outputs of the head; 1 for regression."""
    batch_size: int = 32
    """Rows of one optimizer step."""
    max_length: int = 128
    """Tokens of a row; fewer where the method and the model's positions leave less."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the base's weights; adapters and heads are float32."""
    checkpointing: bool = False
    """Gradient checkpointing."""
    device: Device = "cpu"
    """Whose kernels run: a GPU's attention and dropout keep less for the backward pass."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 runs a float32 base under bfloat16 autocast."""
    quantize: str = "none"
    """How the linear maps of the base's blocks are stored: none, int8, fp4, nf4, or with fields NF4(double=False)."""
    accumulation: int = 1
    """Forward passes that each batch is split into."""
    optimizer: OptimizerName = "adamw"
    """adamw, paged-adamw, adamw-8bit or paged-adamw-8bit."""
    offload_activations: bool = False
    """What is kept for the backward pass is elsewhere: on a CPU in a file, on a GPU in the host's memory."""

    def __post_init__(self) -> None:
        wrong = {name: getattr(self, name) for name in ("classes", "batch_size", "max_length", "accumulation")}
        problems = [f"{name} must be at least 1, not {value}" for name, value in wrong.items() if value < 1]
        problems += [f"{name} must be at most {MOST:,}, not {value}" for name, value in wrong.items() if value > MOST]
        if self.accumulation > max(1, self.batch_size):
            problems.append(
                f"a batch of {self.batch_size} rows cannot be split into {self.accumulation} (accumulation)"
            )
        if self.optimizer not in OPTIMIZERS:
            problems.append(f"optimizer must be one of {', '.join(OPTIMIZERS)}, not {self.optimizer!r}")
        raise_all(problems)
        read_scheme(self.quantize)

    @property
    def scheme(self) -> Scheme | None:
        """How the base is quantised; None: it is not."""
        return read_scheme(self.quantize)

    @property
    def rows(self) -> int:
        """Rows of one forward pass."""
        return math.ceil(self.batch_size / self.accumulation)

    @property
    def autocast(self) -> bool:
        """Whether the base runs under bfloat16 autocast."""
        return self.precision == "bfloat16" and self.dtype == "float32"


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
    """AdamW's two moments of the trained parameters, in memory."""
    activations: int
    """Kept by the forward pass for the backward pass, with the copies of weights in the computing type."""
    peak: int
    """The most at once in a step: all of the above, and what operations make on the way."""
    fixed: int = PROCESS
    """What is there besides: Python and the libraries, on a GPU its context."""

    @property
    def total(self) -> int:
        """The whole process, or all that is taken of the GPU."""
        return self.peak + self.fixed


def quantize_shapes_(model: nn.Module, schemes: Mapping[str, Scheme]) -> None:
    """Put quantised maps in the place of linear maps, as `quantize_` does, on a model of shapes alone.

    schemes: how the map at each path is stored.
    """
    for path, scheme in schemes.items():
        module: Any = model.get_submodule(path)
        shape, transposed = weight_of(module).shape, is_transposed(module)
        width_out, width_in = reversed(shape) if transposed else shape
        with torch.device("meta"):
            dtype = module.weight.dtype
            model.set_submodule(path, QuantizedLinear(scheme, width_in, width_out, module.bias, transposed, dtype))


def forecast_step(host: Host, adapter: Adapter, training: CountedTraining) -> Memory | str:
    """The memory of a step of the attached adapter on the meta device, or why it cannot be forecast.

    Call within `shapes_only`. Raises DeltatuneError for what training refuses, such as checkpointing on some models.
    """
    reads = str(getattr(host.model, "main_input_name", "input_ids"))
    if reads != "input_ids":
        return f"this model reads {reads}, and steps are forecast for texts"
    try:
        return _step(host, adapter, training)
    except DeltatuneError:
        raise
    except Exception as error:  # the model's own code, of whatever kind: it may look at values, as experts do
        reason = first_line(error)
        return f"this model cannot be run without values: {reason[:120]}"


def _step(host: Host, adapter: Adapter, training: CountedTraining) -> Memory:
    plain = (path for path, site in host.sites.weights.items() if not site.quantized)
    base = [host.base.tensor(path) for path in plain]  # also those that the adapter's own weights stand in for
    fixed = [*base, *host.model.parameters(), *host.model.buffers()]
    own = bytes_of([*adapter.parameters(), *adapter.buffers()])
    everything = bytes_of(fixed)
    trainable = [parameter for _, parameter in host.trainable(NAME)]
    trained, largest = bytes_of(trainable), max(bytes_of([parameter]) for parameter in trainable)
    host.model.train(adapter.count > 0)  # a base without anything to train runs without dropout
    with (
        gradient_checkpointing(host.model, training.checkpointing),
        recomputed_shapes(host.model, training.device),
        LiveMemory() as live,
    ):
        losses: list[Tensor] = []
        if training.offload_activations:
            with _elsewhere(fixed):
                losses.append(_loss(host, training))
        else:
            kept = kept_for_backward(lambda: losses.append(_loss(host, training)), fixed)
        if training.checkpointing or training.offload_activations:
            kept = live.live  # the inputs of the blocks are kept outside of torch's graph
        torch.autograd.backward(losses.pop())
        peak = live.peak
    if training.accumulation > 1:
        peak += trained  # the gradients of the passes before
    optimizer = state_bytes(training.optimizer, (parameter.numel() for parameter in trainable), training.device)
    update = largest  # the gradient check, and what an update of moments in a file or in 8 bits needs
    if is_paged(training.optimizer) or is_8bit(training.optimizer):
        update = max(update, 8 * 4 * min(CHUNK, largest // 4))
    most = everything + optimizer + max(peak, trained + update)
    return Memory(everything - own, own, trained, optimizer, kept, most, _fixed(training))


def _fixed(training: CountedTraining) -> int:
    """Bytes that are there besides a step's tensors."""
    if training.device == "cuda":
        return GPU_CONTEXT
    kernels = isinstance(training.scheme, FourBit) and find_spec("bitsandbytes") is not None
    return PROCESS + (BITSANDBYTES if kernels else 0)


def _elsewhere(stay: Iterable[Tensor]) -> Any:
    """Within this context large tensors that are kept for the backward pass take no memory until it reads them."""
    own = {tensor.untyped_storage()._cdata for tensor in stay}

    def pack(tensor: Tensor) -> Any:
        if tensor.nbytes < SMALLEST or tensor.untyped_storage()._cdata in own:
            return tensor
        return tensor.shape, tensor.dtype

    def unpack(kept: Any) -> Tensor:
        return kept if isinstance(kept, Tensor) else torch.empty(kept[0], dtype=kept[1], device="meta")

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def _loss(host: Host, training: CountedTraining) -> Tensor:
    """The loss of one forward pass, on all its rows, as `TaskModel` computes it."""
    free = free_positions(host, NAME)
    length = training.max_length if free is None else max(1, min(training.max_length, free))
    ids = torch.zeros(training.rows, length, dtype=torch.long)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if training.task != "lm":
        logits = adapter_logits(host, NAME, batch, training.autocast)
        return _cross_entropy(logits, ids if training.task == "tag" else ids[:, 0])
    more: dict[str, Any] = {"decoder_input_ids": ids} if reads_decoder_states(host) else {}
    config: Any = host.model.config
    labelled = max(1, length - 1) if family(config) == "decoder" else length
    caching = getattr(config, "use_cache", False)
    if caching:  # by the config: said in the call, it may be a step of generation without a cache
        config.use_cache = False

    def select(states: Tensor) -> Tensor:  # (B, T', D) -> (1, M, D)
        return states[:, -length:][:, :labelled].flatten(0, 1)[None].clone()

    try:
        with selected_states(host.model, select), torch.autocast("meta", torch.bfloat16, training.autocast):
            outputs = host.model(**batch, **more)
    finally:
        if caching:
            config.use_cache = caching
    return _cross_entropy(outputs.logits[0], ids[:, :labelled].flatten())


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    flat = logits.flatten(0, -2).float()
    if flat.shape[-1] == 1:
        return F.mse_loss(flat[:, 0], labels.flatten().float())
    return F.cross_entropy(flat, labels.flatten(), reduction="sum")


def bytes_of(tensors: Iterable[Any]) -> int:
    """Bytes of tensors, those that share their memory once."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())
