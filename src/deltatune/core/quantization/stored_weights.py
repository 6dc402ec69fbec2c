"""What the rest of the library asks about a linear map's weight, however and by whichever package it is stored."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from deltatune.core.errors import DeltatuneError
from deltatune.core.quantization.packages.bitsandbytes_weights import bitsandbytes_weight
from deltatune.core.quantization.packages.gptq_weights import gptq_weight
from deltatune.core.quantization.packages.hqq_weights import hqq_weight
from deltatune.core.quantization.packages.tensor_weights import tensor_weight
from deltatune.core.quantization.packages.unknown_weights import holds_codes, unknown_weight
from deltatune.core.quantization.quantized_linear import QuantizedLinear
from deltatune.core.quantization.weight_storage import StoredWeight


class OwnWeight(StoredWeight):
    """The weight of a QuantizedLinear."""

    def __init__(self, module: QuantizedLinear) -> None:
        self.module, self.label, self.shape = module, module.scheme.text, module.shape
        self.transposed = module.transposed

    def read(self) -> Tensor:
        return self.module.matrix(self.module.dtype)

    def tensors(self) -> Iterable[Tensor]:
        return self.module.tensors.values()


DDP_IGNORED = "_ddp_params_and_buffers_to_ignore"
"""The attribute of a model in which DistributedDataParallel finds the names of what it leaves alone."""

READERS: list[Callable[[nn.Module], StoredWeight | None]] = [
    bitsandbytes_weight,
    tensor_weight,
    hqq_weight,
    gptq_weight,
    unknown_weight,
]
"""One for each package: what it knows of a module, or None if the module is not its own. The last knows any codes."""


def stored_weight(module: nn.Module) -> StoredWeight | None:
    """How a module's weight is stored; None where it is a plain parameter, or where there is none."""
    if isinstance(module, QuantizedLinear):
        return OwnWeight(module)
    if is_plain(module):
        return None
    return next((stored for reader in READERS if (stored := reader(module)) is not None), None)


def is_plain(module: nn.Module) -> bool:
    """Whether a module's weight is a parameter of 16 bits or more, or there is none and the module is torch's own."""
    weight = module._parameters.get("weight")
    if weight is None:
        return type(module).__module__.startswith("torch.nn.") or not hasattr(module, "in_features")
    if isinstance(weight, torch.nn.parameter.UninitializedParameter):
        return True
    return type(weight) is nn.Parameter and not holds_codes(weight)


def plain_parameters(module: nn.Module) -> dict[str, Tensor]:
    """A module's own parameters by name, without what stores a quantised weight."""
    quantized = stored_weight(module) is not None
    return {
        name: parameter
        for name, parameter in module.named_parameters(recurse=False)
        if not (quantized and (name == "weight" or holds_codes(parameter)))
    }


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
    tensors = [tensor for tensor in (*model.parameters(), *model.buffers()) if type(tensor.data) is Tensor]
    for module in model.modules():
        if (stored := stored_weight(module)) is not None:
            tensors += [tensor for tensor in stored.tensors() if isinstance(tensor, Tensor)]
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def protect_(model: nn.Module) -> None:
    """Keep the modules of other packages from changing what they store when they are run.

    DistributedDataParallel is told to leave our codes alone: they never change, and it would send them before each
    forward. Raises DeltatuneError, naming them, for modules that compute with other values than their codes stand for.
    """
    problems: dict[str, list[str]] = {}
    kept: set[str] = set(getattr(model, DDP_IGNORED, ()))
    for path, module in model.named_modules():
        if isinstance(module, QuantizedLinear):
            kept |= {f"{path}.{name}" for name in module.tensors}
        elif (stored := stored_weight(module)) is not None:
            try:
                stored.protect_()
            except DeltatuneError as error:
                problems.setdefault(str(error), []).append(path)
    if kept:
        setattr(model, DDP_IGNORED, sorted(kept))
    if problems:
        raise DeltatuneError(
            "\n".join(f"{paths[0]}{_more(len(paths) - 1)}: {message}" for message, paths in problems.items())
        )


def _more(count: int) -> str:
    return f" and {count:,} more" if count else ""
