"""What fits into a memory: for each method the least demanding change of a training that makes its forecast fit.

Changes in the order of what they cost the user: more forward passes for a batch (the same result), gradient
checkpointing (the same result, about half more time), moments in a file (the same result), activations in a file (the
same result, slower), the base in 4 bits (a little of the result), and shorter texts.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from deltatune.comparison.costs.method_counts import CountingHost, MethodCount
from deltatune.comparison.costs.training_memory import CountedTraining, Memory
from deltatune.core.errors import DeltatuneError, nearest
from deltatune.core.memory import in_bytes
from deltatune.models.loading import find_config

UNITS = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
MOST = 2**50
"""Bytes that no machine has."""
METHODS = (
    "LoRA(r=8)",
    "LoRA(r=16, sites='*.{attn,ffn}.*')",
    "DoRA()",
    "Bottleneck()",
    "ReFT()",
    "IA3()",
    "Prefix()",
    "Prompt()",
    "BitFit()",
    "Full()",
)
"""One or two methods of every family, the most usual first."""
SHORTEST = 64
"""Tokens below which texts are not shortened."""
SMALL_MODELS = (2, 4)
"""Blocks of the two models from which a deep one is extrapolated: every block takes as much as the one before."""
CERTAIN = 0.05
"""Share of the gradients in what a step takes, up to which the largest moment of a step is the same at any depth."""
LIMITED = 64
"""The most by which the largest batch and length of a configuration exceed what was asked for."""


def read_memory(text: str) -> int:
    """Bytes of 16GB, 16GiB, 16000MB or 1.5 TB. Raises DeltatuneError for other texts and for absurd amounts."""
    matched = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    unit = matched[2].lower() if matched else ""
    if matched is None or unit not in UNITS:
        hint = nearest(unit, list(UNITS)) if unit else ""
        raise DeltatuneError(f"cannot read the memory {text!r}{hint}; give a number and a unit: 16GB, 16GiB or 16000MB")
    count = float(matched[1]) * UNITS[unit]
    if not 2**20 <= count <= MOST:
        raise DeltatuneError(f"a memory of {text.strip()} is {'too small' if count < MOST else 'more than there is'}")
    return int(count)


@dataclass(frozen=True)
class Fitting:
    """One method and the training in which it fits."""

    method: str
    training: CountedTraining
    """As asked for, with the changes."""
    changes: tuple[str, ...] = ()
    """What was changed, in words; empty where it fits as asked for."""
    memory: Memory | None = None
    """The forecast; None where the method cannot be taken, or not be forecast."""
    fits: bool = False
    problem: str = ""
    """Why it does not fit, or cannot be taken."""
    cost: int = 0
    """How much the changes cost the user, for comparison alone."""


@dataclass
class DeepModel:
    """Forecasts for one model: a base is made once, and deep models are extrapolated from shallow ones."""

    name: str
    _hosts: dict[tuple[object, ...], CountingHost] = field(default_factory=dict)

    def host(self, training: CountedTraining, layers: int | None = None) -> CountingHost:
        """A host of this base for a training."""
        key = (training.task, training.dtype, training.device, training.quantize, layers)
        if key not in self._hosts:
            self._hosts[key] = CountingHost(self.name, training, layers)
        self._hosts[key].trained_as_(training)
        return self._hosts[key]

    def count(self, method: str, training: CountedTraining) -> MethodCount:
        """The count of a method, its memory within 1 % of that of the whole model."""
        depth = self._depth()
        if depth <= 2 * SMALL_MODELS[-1]:
            return self.host(training).count(method)
        low, high = (self._even(method, training, layers) for layers in SMALL_MODELS)
        if low is None or high is None or low.memory is None or high.memory is None:
            return self.host(training).count(method)
        made = high.memory.peak - high.memory.weights
        if high.memory.gradients > CERTAIN * made:
            return self.host(training).count(method)
        blocks = (depth - SMALL_MODELS[0]) / (SMALL_MODELS[1] - SMALL_MODELS[0])
        values = {
            name: round(value + blocks * (getattr(high.memory, name) - value))
            for name, value in dataclasses.asdict(low.memory).items()
        }
        return replace(high, memory=Memory(**values))

    def _depth(self) -> int:
        """Blocks of a model whose blocks are alike; 0 for other models."""
        _, config = find_config(self.name)
        depth = getattr(config, "num_hidden_layers", 0)
        lists = [value for value in vars(config).values() if isinstance(value, (list, tuple)) and len(value) == depth]
        several = getattr(config, "is_encoder_decoder", False) or getattr(config, "text_config", None) is not None
        return 0 if several or lists or not isinstance(depth, int) else depth

    def _even(self, method: str, training: CountedTraining, layers: int) -> MethodCount | None:
        """The count on a model of few blocks; None where the method does not treat all blocks alike."""
        host = self.host(training, layers)
        counted = host.count(method)
        if counted.memory is None or host.picked is None:
            return None
        per_layer = Counter(layer for layer in host.picked if layer is not None)
        even = not per_layer or (len(per_layer) == layers and len(set(per_layer.values())) == 1)
        return counted if even else None


class MemoryFit:
    """Searches the trainings of one model that fit into a memory."""

    def __init__(self, model: str, memory: int, asked: CountedTraining, fixed: Sequence[str] = ()) -> None:
        """fixed: fields of the training that must stay: quantize, optimizer, max_length, checkpointing."""
        self.model, self.memory, self.asked, self.fixed = DeepModel(model), memory, asked, set(fixed)
        host = self.model.host(asked)
        self.asked = host.training  # with the length that the model takes

    def fit(self, method: str) -> Fitting:
        """The least demanding change that makes a method fit. Raises DeltatuneError for a text that is no method."""
        first = self._tried(method, self.asked, (), 0)
        if first.memory is None or first.fits:
            return first
        tightest, last = first, None
        for cost, training, changes in self._candidates(first):
            one_row = replace(training, accumulation=training.batch_size)
            if self._least(first, training) > self.memory:
                last = one_row, changes
                continue
            lowest = self._tried(method, one_row, self._with_passes(changes, one_row), cost + 1)
            tightest = _smaller(tightest, lowest)
            if lowest.fits:
                return self._fewest_passes(method, training, changes, cost, lowest)
        if tightest is first and last is not None:
            training, changes = last
            tightest = _smaller(first, self._tried(method, training, self._with_passes(changes, training), 0))
        assert tightest.memory is not None
        missing = in_bytes(tightest.memory.total - self.memory)
        words = f"with {', '.join(tightest.changes)} it" if tightest.changes else "it"
        return replace(tightest, problem=f"{words} takes {in_bytes(tightest.memory.total)}: {missing} are missing")

    def _least(self, first: Fitting, training: CountedTraining) -> int:
        """Bytes that a training needs whatever its activations are, from the first forecast; 0 if the base changes."""
        if training.quantize != self.asked.quantize or first.memory is None:
            return 0
        memory = first.memory
        states = 0 if training.optimizer != self.asked.optimizer else memory.optimizer
        return memory.weights + memory.adapter + memory.gradients + states + memory.fixed

    def _candidates(self, first: Fitting) -> list[tuple[int, CountedTraining, tuple[str, ...]]]:
        """Changes of what was asked for, the least demanding first; a cost of each, without accumulation's."""
        asked, memory = self.asked, first.memory
        assert memory is not None
        options: list[tuple[int, dict[str, object], str]] = []
        if not asked.checkpointing and "checkpointing" not in self.fixed:
            options.append((2, {"checkpointing": True}, "--checkpointing"))
        if asked.optimizer == "adamw" and "optimizer" not in self.fixed and memory.optimizer > memory.peak // 50:
            options.append((3, {"optimizer": "paged-adamw"}, "--optimizer paged-adamw"))
        if not asked.offload_activations and "offload_activations" not in self.fixed:
            options.append((5, {"offload_activations": True}, "--offload-activations"))
        if asked.scheme is None and "quantize" not in self.fixed:
            options.append((8, {"quantize": "nf4"}, "--quantize nf4"))
        if "max_length" not in self.fixed:
            length, cost = asked.max_length // 2, 20
            while length >= SHORTEST:
                options.append((cost, {"max_length": length}, f"--max-length {length}"))
                length, cost = length // 2, cost + 20
        candidates = []
        lengths = [option for option in options if "max_length" in option[1]]
        others = [option for option in options if "max_length" not in option[1]]
        for chosen in range(2 ** len(others)):
            picked = [option for i, option in enumerate(others) if chosen >> i & 1]
            for shorter in [None, *lengths]:
                parts = [*picked, *([shorter] if shorter else [])]
                training = replace(asked, **{k: v for part in parts for k, v in part[1].items()})  # type: ignore[arg-type]
                if shorter is not None and len(picked) < len(others):
                    continue  # shorter texts after everything else
                candidates.append((sum(part[0] for part in parts), training, tuple(part[2] for part in parts)))
        return sorted(candidates, key=lambda each: each[0])

    def _fewest_passes(
        self, method: str, training: CountedTraining, changes: tuple[str, ...], cost: int, lowest: Fitting
    ) -> Fitting:
        """The training with as few forward passes a batch as fit."""
        best, passes = lowest, 1
        while passes < lowest.training.accumulation:
            split = replace(training, accumulation=passes)
            tried = self._tried(method, split, self._with_passes(changes, split), cost + (passes > 1))
            if tried.fits:
                best = tried
                break
            passes *= 2
        return best

    def _with_passes(self, changes: tuple[str, ...], training: CountedTraining) -> tuple[str, ...]:
        split = training.accumulation > self.asked.accumulation
        return (*changes, f"--accumulation {training.accumulation}") if split else changes

    def _tried(self, method: str, training: CountedTraining, changes: tuple[str, ...], cost: int) -> Fitting:
        try:
            counted = self.model.count(method, training)
        except DeltatuneError as error:
            if training == self.asked:
                raise
            return Fitting(method, training, changes, problem=str(error), cost=cost)
        problem = counted.problem or counted.memory_problem or ""
        memory = counted.memory
        fits = memory is not None and memory.total <= self.memory
        return Fitting(counted.method, training, changes, memory, fits, problem, cost)

    def largest(self, fitting: Fitting, name: str) -> int:
        """The largest `batch_size` of one forward pass, or `max_length`, with which a fitting training still fits.

        At most LIMITED times what the training has.
        """
        training = replace(fitting.training, batch_size=fitting.training.rows, accumulation=1)
        start: int = getattr(training, name)
        low, high = start, start * LIMITED
        size = start * 2
        while size <= high and self._holds(fitting.method, training, name, size):
            low, size = size, size * 2
        high = min(size, high)
        while high - low > max(1, low // 16):
            middle = (low + high) // 2
            low, high = (middle, high) if self._holds(fitting.method, training, name, middle) else (low, middle)
        return low

    def _holds(self, method: str, training: CountedTraining, name: str, size: int) -> bool:
        larger = replace(training, **{name: size})  # type: ignore[arg-type]
        if name == "max_length" and self.model.host(larger).training.max_length < size:
            return False
        return self._tried(method, larger, (), 0).fits


def _smaller(first: Fitting, second: Fitting) -> Fitting:
    if first.memory is None or second.memory is None:
        return second if first.memory is None else first
    return first if first.memory.total <= second.memory.total else second


def recommended(fittings: Sequence[Fitting]) -> Fitting | None:
    """Of the methods that fit, the first of those with the least demanding change."""
    fitting = [each for each in fittings if each.fits]
    return min(fitting, key=lambda each: each.cost, default=None)


def quantized_bits(host: CountingHost) -> float:
    """Bits a parameter of the quantised matrices of a host, codes and scales; 32 without any."""
    from deltatune.core.quantization.quantized_linear import QuantizedLinear

    modules = [module for module in host.host.model.modules() if isinstance(module, QuantizedLinear)]
    params = sum(math.prod(module.shape) for module in modules)
    return 8 * sum(module.scheme.bytes(module.shape) for module in modules) / params if params else 32.0
