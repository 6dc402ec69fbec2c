"""Weights that are tensors of a class of their own, as torchao and quanto make them: they dequantise themselves."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from deltatune.core.quantization.weight_storage import StoredWeight, check_gradient_


def tensor_weight(module: nn.Module) -> StoredWeight | None:
    """The weight of a Linear whose parameter is a tensor of another class with a method `dequantize`."""
    weight: Any = module._parameters.get("weight")
    own = type(getattr(weight, "data", weight))
    if not isinstance(module, nn.Linear) or own in (Tensor, nn.Parameter) or own.dequantize is Tensor.dequantize:
        return None
    return TensorWeight(module, weight)


class TensorWeight(StoredWeight):
    """The weight of a Linear of torch or of quanto's QLinear."""

    def __init__(self, module: nn.Linear, weight: Any) -> None:
        self.module, self.weight = module, weight
        self.shape = module.out_features, module.in_features
        kind = type(weight.data)
        package = kind.__module__.removeprefix("optimum.").partition(".")[0]
        code = getattr(weight, "qtype", None)  # quanto's name of the codes
        self.autocasts = package != "quanto"
        self.label = f"{package} {getattr(code, 'name', None) or kind.__name__}"

    def read(self) -> Tensor:
        matrix: Tensor = self.weight.dequantize()
        return matrix.detach()

    def tensors(self) -> Iterable[Tensor]:
        yield from _inner(self.weight.data)

    def protect_(self) -> None:
        check_gradient_(self.module, self.label)


def _inner(tensor: Any) -> Iterable[Tensor]:
    """The plain tensors that a tensor of another class is made of."""
    if type(tensor) in (Tensor, nn.Parameter):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        part = getattr(tensor, name)
        if isinstance(part, torch.Tensor):
            yield from _inner(part)
