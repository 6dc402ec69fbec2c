"""Weights of gptqmodel's TorchLinear (GPTQ), which reads itself. Its other kernels repack codes and are only run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from deltatune.core.quantization.weight_storage import StoredWeight, check_gradient_


def gptq_weight(module: nn.Module) -> StoredWeight | None:
    """The weight of a TorchLinear."""
    own = type(module).__module__.startswith("gptqmodel.") and type(module).__name__ == "TorchLinear"
    return GPTQWeight(module) if own else None


class GPTQWeight(StoredWeight):
    """The weight of TorchLinear: packed codes `qweight` (in · bits / 32, out), zeros and scales of each group."""

    typed = False  # the scales are float16, whatever the base is
    autocasts = False

    def __init__(self, module: nn.Module) -> None:
        self.module: Any = module
        self.shape = int(module.out_features), int(module.in_features)  # type: ignore[arg-type]
        self.label = f"gptqmodel {self.module.bits} bits, groups of {self.module.group_size}"

    def read(self) -> Tensor:
        matrix: Tensor = self.module.dequantize_weight()  # (in, out)
        return matrix.T.contiguous().detach()

    def tensors(self) -> Iterable[Tensor]:
        yield from (self.module.qweight, self.module.qzeros, self.module.scales, self.module.g_idx)

    def protect_(self) -> None:
        check_gradient_(self.module, self.label)
