"""Weights of HQQ's HQQLinear, which reads itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from deltatune.core.quantization.weight_storage import StoredWeight, check_gradient_


def hqq_weight(module: nn.Module) -> StoredWeight | None:
    """The weight of an HQQLinear that is quantised."""
    names = {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(module).__mro__}
    return HQQWeight(module) if "hqq.HQQLinear" in names and getattr(module, "ready", False) else None


class HQQWeight(StoredWeight):
    """The weight of HQQLinear: packed codes `W_q`, and for each group a scale and a zero in `meta`."""

    autocasts = False

    def __init__(self, module: nn.Module) -> None:
        self.module: Any = module
        self.shape = int(module.out_features), int(module.in_features)  # type: ignore[arg-type]
        facts: Any = self.module.meta
        self.label = f"hqq {facts['nbits']} bits, groups of {facts['group_size']}"

    def read(self) -> Tensor:
        matrix: Tensor = self.module.dequantize()
        return matrix.reshape(self.shape).detach()

    def tensors(self) -> Iterable[Tensor]:
        yield self.module.W_q
        yield from (value for value in self.module.meta.values() if isinstance(value, Tensor))

    def protect_(self) -> None:
        check_gradient_(self.module, self.label)
