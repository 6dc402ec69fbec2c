"""Linear maps that hold codes in a layout that is not known here: they are told from plain ones, and never read."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from deltatune.core.errors import DeltatuneError
from deltatune.core.quantization.weight_storage import StoredWeight, check_gradient_


def holds_codes(tensor: Tensor) -> bool:
    """Whether a tensor can hold no weights as they are: integers, floats of 8 bits, tensors of another class."""
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.element_size() < 2:
        return True
    return type(tensor.data) not in (Tensor, nn.Parameter) and not hasattr(tensor, "full_tensor")  # FSDP2's parameters


def unknown_weight(module: nn.Module) -> StoredWeight | None:
    """The weight of any other module that has the widths of a linear map, and codes."""
    widths = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if not all(isinstance(width, int) and width > 0 for width in widths) or isinstance(module, nn.Embedding):
        return None
    tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    inside = any(hasattr(child, "in_features") for child in module.children())
    return None if inside or not any(map(holds_codes, tensors)) else UnknownWeight(module, tensors)


class UnknownWeight(StoredWeight):
    """The weight of a module that is run, but not read."""

    readable = False

    def __init__(self, module: nn.Module, tensors: list[Tensor]) -> None:
        self.module = module
        self._tensors = sorted(tensors, key=lambda tensor: not holds_codes(tensor))
        self.shape = int(module.out_features), int(module.in_features)  # type: ignore[arg-type]
        self.label = f"{type(module).__module__.partition('.')[0]} {type(module).__name__}"

    def read(self) -> Tensor:
        raise DeltatuneError(
            f"the weights are stored in {self.label}, whose layout is not known, so they cannot be read. Methods that "
            "add to what the base computes can be used (LoRA(), Bottleneck(), Prefix()), others, merging and "
            "dequantize_ need a base without quantisation or with one that is known: deltatune.quantize_, "
            "bitsandbytes, torchao, quanto, hqq, gptqmodel (torch)"
        )

    def tensors(self) -> Iterable[Tensor]:
        return self._tensors

    def protect_(self) -> None:
        check_gradient_(self.module, self.label)
