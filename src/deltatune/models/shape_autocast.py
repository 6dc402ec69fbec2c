"""Mixed precision of runs on shapes alone: torch has no autocast for the meta device, so its casts are made here.

The lists are those of torch's autocast: operations that run in the lower precision, in float32, and in the widest type
of their inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

LOWER = {
    *("linear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "baddbmm", "addbmm", "einsum", "bilinear"),
    *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "prelu"),
    *("scaled_dot_product_attention", "mv", "chain_matmul", "multi_dot"),
}
"""Functions that run in the lower precision."""
FLOAT32 = {
    *("mse_loss", "nll_loss", "cross_entropy", "l1_loss", "smooth_l1_loss", "kl_div", "huber_loss"),
    *("binary_cross_entropy_with_logits", "prod"),
}
"""Functions that run in float32 on every device."""
FLOAT32_ON_GPUS = {
    *("layer_norm", "group_norm", "softmax", "log_softmax", "softplus", "sum", "norm", "cumsum", "cumprod"),
    *("pow", "__pow__", "__rpow__", "exp", "log", "reciprocal", "rsqrt", "__rtruediv__", "cosine_similarity"),
}
"""Functions that run in float32 on GPUs, and in the type of their inputs on CPUs."""
WIDEST = {"cat", "stack", "concat"}
"""Functions that run in the widest type of their inputs."""


class ShapeAutocast:
    """The casts of one run on shapes: which type is on, and the copies of trained tensors that a forward pass keeps."""

    def __init__(self, device: str) -> None:
        self.float32 = FLOAT32 | FLOAT32_ON_GPUS if device == "cuda" else FLOAT32
        self.dtype: torch.dtype | None = None
        """The lower precision; None: off."""
        self.depth = 0
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}

    def cast(self, name: str, args: Sequence[Any], options: Mapping[str, Any]) -> tuple[Any, Any]:
        """The arguments of the function of this name, as autocast passes them."""
        if self.dtype is None:
            return args, options
        if name in LOWER:
            lowered: tuple[Any, Any] = tree_map_only(Tensor, self._lower, (tuple(args), dict(options)))
            return lowered
        if name in self.float32:
            widened: tuple[Any, Any] = tree_map_only(Tensor, self._wide, (tuple(args), dict(options)))
            return widened
        if name in WIDEST and args and isinstance(args[0], (list, tuple)):
            kinds = {t.dtype for t in args[0] if isinstance(t, Tensor)}
            if kinds == {self.dtype, torch.float32}:
                return (tree_map_only(Tensor, self._wide, tuple(args[0])), *args[1:]), options
        return args, options

    def _lower(self, tensor: Tensor) -> Tensor:
        if not (tensor.is_meta and tensor.is_floating_point()) or tensor.dtype in (self.dtype, torch.float64):
            return tensor
        if not (tensor.requires_grad and tensor.is_leaf and tensor.dtype == torch.float32):
            return tensor.to(self.dtype)
        if id(tensor) not in self._copies:  # as torch does: one copy of a trained tensor for the whole pass
            self._copies[id(tensor)] = tensor, tensor.to(self.dtype)
        return self._copies[id(tensor)][1]

    def _wide(self, tensor: Tensor) -> Tensor:
        return tensor.float() if tensor.is_meta and tensor.dtype == self.dtype else tensor

    def within(self, dtype: torch.dtype | None, enabled: bool = True) -> AbstractContextManager[None]:
        """What `torch.autocast` returns: within this context the type is on, or off."""
        return _Region(self, dtype if enabled else None)

    def again(self) -> AbstractContextManager[None]:
        """A context for operations that run again in the backward pass, as they ran here."""
        return nullcontext() if self.dtype is None else _Region(self, self.dtype)


class _Region:
    """One region of a ShapeAutocast; usable once, as a context or a decorator is by models."""

    def __init__(self, state: ShapeAutocast, dtype: torch.dtype | None) -> None:
        self.state, self.dtype, self.before = state, dtype, state.dtype

    def __enter__(self) -> None:
        self.before, self.state.dtype = self.state.dtype, self.dtype
        self.state.depth += 1

    def __exit__(self, *_: object) -> None:
        self.state.dtype = self.before
        self.state.depth -= 1
        if not self.state.depth:
            self.state._copies.clear()
