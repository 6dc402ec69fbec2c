"""What the rest of the library asks about a linear map's weight, however and by whichever package it is stored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from deltatune.core.quantization.quantized_linear import QuantizedLinear


class StoredWeight(ABC):
    """A weight that is no plain parameter: codes and scales, from which the matrix is made when it is needed."""

    label: str
    """What it is, for readers: `nf4`, `NF4(double=False)`, `bitsandbytes nf4`."""
    shape: tuple[int, int]
    """(out, in)."""
    transposed = False
    """Whether the plain map held it as (in, out)."""

    @abstractmethod
    def read(self) -> Tensor:
        """The matrix (out, in), made anew, without gradients."""

    @abstractmethod
    def tensors(self) -> Iterable[Tensor]:
        """The tensors that are stored: their bytes are the weight's, and the first holds the codes."""


class OwnWeight(StoredWeight):
    """The weight of a QuantizedLinear."""

    def __init__(self, module: QuantizedLinear) -> None:
        self.module, self.label, self.shape = module, module.scheme.text, module.shape
        self.transposed = module.transposed

    def read(self) -> Tensor:
        return self.module.matrix(self.module.dtype)

    def tensors(self) -> Iterable[Tensor]:
        return self.module.tensors.values()


class BitsandbytesFourBit(StoredWeight):
    """The weight of bitsandbytes' Linear4bit."""

    def __init__(self, module: nn.Module) -> None:
        self.weight: Any = module.weight
        self.state: Any = getattr(self.weight, "quant_state", None) or getattr(module, "quant_state", None)
        self.shape = int(module.out_features), int(module.in_features)  # type: ignore[arg-type]
        self.transposed = getattr(module, "source_cls", None) is Conv1D
        kind = self.state.quant_type if self.state is not None else "4 bits"
        self.label = f"bitsandbytes {kind}"

    def read(self) -> Tensor:
        import bitsandbytes

        matrix: Tensor = bitsandbytes.functional.dequantize_4bit(self.weight.data, self.state)
        return matrix.detach()

    def tensors(self) -> Iterable[Tensor]:
        yield self.weight
        if self.state is not None:
            yield self.state.absmax
            if self.state.state2 is not None:
                yield from (self.state.state2.absmax, self.state.offset)


class BitsandbytesEightBit(StoredWeight):
    """The weight of bitsandbytes' Linear8bitLt."""

    label = "bitsandbytes int8"

    def __init__(self, module: nn.Module) -> None:
        self.weight: Any = module.weight
        self.module: Any = module
        self.shape = int(module.out_features), int(module.in_features)  # type: ignore[arg-type]
        self.transposed = getattr(module, "source_cls", None) is Conv1D

    def read(self) -> Tensor:
        scale = getattr(self.weight, "SCB", None)
        if scale is None:
            scale = self.module.state.SCB
        matrix: Tensor = (self.weight.data * scale[:, None] * (1 / 127)).detach()
        return matrix

    def tensors(self) -> Iterable[Tensor]:
        yield self.weight
        scale = getattr(self.weight, "SCB", None)
        if scale is None:
            scale = self.module.state.SCB
        if scale is not None:
            yield scale


def _bitsandbytes(module: nn.Module) -> StoredWeight | None:
    names = {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(module).__mro__}
    if "bitsandbytes.Linear4bit" in names:
        return BitsandbytesFourBit(module)
    return BitsandbytesEightBit(module) if "bitsandbytes.Linear8bitLt" in names else None


READERS: list[Callable[[nn.Module], StoredWeight | None]] = [_bitsandbytes]
"""One for each package: what it knows of a module, or None if the module is not its own."""


def stored_weight(module: nn.Module) -> StoredWeight | None:
    """How a module's weight is stored; None where it is a plain parameter, or where there is none."""
    if isinstance(module, QuantizedLinear):
        return OwnWeight(module)
    if type(module).__module__.startswith(("torch.nn.", "transformers.")):
        weight = module._parameters.get("weight")
        if weight is None or type(weight) in (nn.Parameter, torch.nn.parameter.UninitializedParameter):
            return None
    return next((stored for reader in READERS if (stored := reader(module)) is not None), None)


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear map: torch's, GPT-2's Conv1D, or one with a quantised weight."""
    return isinstance(module, (nn.Linear, Conv1D)) or stored_weight(module) is not None


def is_transposed(module: nn.Module) -> bool:
    """Whether a linear map's weight is, or was before quantisation, stored as (in, out)."""
    stored = stored_weight(module)
    return isinstance(module, Conv1D) if stored is None else stored.transposed


def weight_of(module: nn.Module) -> Tensor:
    """A module's weight, as the plain module orients it; of a quantised one a copy, made anew at every call."""
    stored = stored_weight(module)
    if stored is None:
        weight: Tensor = module.weight  # type: ignore[assignment]
        return weight
    matrix = stored.read()
    return matrix.T if stored.transposed else matrix


def quantized_label(module: nn.Module) -> str:
    """What a module's weight is quantised to, for readers; empty for a plain weight."""
    stored = stored_weight(module)
    return "" if stored is None else stored.label


def stored_bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters, buffers and quantised weights, those that share memory once."""
    tensors = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        if (stored := stored_weight(module)) is not None:
            tensors += [tensor for tensor in stored.tensors() if isinstance(tensor, Tensor)]
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())
