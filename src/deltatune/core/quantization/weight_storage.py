"""How a linear map's weight is stored where it is no plain parameter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from deltatune.core.errors import DeltatuneError


class StoredWeight(ABC):
    """A weight that is no plain parameter: codes and scales, from which the matrix is made when it is needed."""

    label: str
    """What it is, for readers: `nf4`, `NF4(double=False)`, `bitsandbytes nf4`."""
    shape: tuple[int, int]
    """(out, in)."""
    transposed = False
    """Whether the plain map held it as (in, out)."""
    typed = True
    """Whether the matrix that is read has the type of the base, so that a plain map can stand in for the module."""
    autocasts = True
    """Whether the module trains under autocast."""
    readable = True
    """Whether its layout is known."""

    @abstractmethod
    def read(self) -> Tensor:
        """The matrix (out, in), made anew, without gradients. Raises DeltatuneError where its layout is not known."""

    @abstractmethod
    def tensors(self) -> Iterable[Tensor]:
        """The tensors that are stored: their bytes are the weight's, and the first holds the codes."""

    def protect_(self) -> None:  # noqa: B027 (nothing to do for ours)
        """Keep the module from changing its stored tensors when it is run, and from dropping gradients in silence."""


class DroppedGradient:
    """A hook that stops a forward through which no gradient would come back, where one is needed."""

    def __init__(self, label: str) -> None:
        self.label = label

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Raise DeltatuneError if an input needs a gradient and the output has none."""
        needed = torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in inputs)
        if needed and isinstance(output, Tensor) and not output.requires_grad:
            raise DeltatuneError(
                f"a {type(module).__name__} stored in {self.label} passes no gradient to what is below it, so adapters "
                "there would learn nothing. To train, load the base with weights alone quantised (no quantised "
                "activations), or without; to run it only, use torch.no_grad()"
            )


def check_gradient_(module: nn.Module, label: str) -> None:
    """Let a module of another package raise an error where it would drop the gradient in silence."""
    if not any(isinstance(hook, DroppedGradient) for hook in module._forward_hooks.values()):
        module.register_forward_hook(DroppedGradient(label))
