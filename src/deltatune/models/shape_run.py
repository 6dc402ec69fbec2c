"""Runs on shapes alone: a model on the meta device takes a training step, and the memory it would need is counted.

Nothing is computed and nothing is allocated. Rows are as long as the batch, without padding.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from deltatune.models.shape_autocast import ShapeAutocast

Device = Literal["cpu", "cuda"]
"""The device whose kernels are counted: attention and dropout keep less for the backward pass on a GPU."""


@contextmanager
def shapes_only(device: Device = "cpu") -> Iterator[None]:
    """Within this context tensors are made on the meta device, and code that asks for their values goes on.

    Tokens are all real, and drawn numbers are about 0, so that no layer is left out. `torch.autocast("meta", dtype)`
    casts as it does on the device whose kernels are counted.
    """
    autocast, is_enabled, dtype_of = torch.autocast, torch.is_autocast_enabled, torch.get_autocast_dtype
    in_amp, is_available = torch.amp.autocast, torch.amp.is_autocast_available
    casts = ShapeAutocast(device)

    def shape_autocast(device_type: str, dtype: Any = None, enabled: bool = True, *more: Any, **options: Any) -> Any:
        if device_type != "meta":
            return autocast(device_type, dtype, enabled, *more, **options)
        return casts.within(dtype or torch.bfloat16, enabled)

    def is_autocast(device_type: str | None = None) -> bool:
        if device_type == "meta":
            return casts.dtype is not None
        return is_enabled(*[device_type] if device_type else [])

    def autocast_dtype(device_type: str) -> torch.dtype:
        return casts.dtype or torch.bfloat16 if device_type == "meta" else dtype_of(device_type)

    def is_autocast_available(device_type: str) -> bool:
        return casts.dtype is not None if device_type == "meta" else is_available(device_type)

    # torch has no autocast for the meta device, and raises even where it is asked for none
    torch.autocast, torch.is_autocast_enabled = shape_autocast, is_autocast  # type: ignore[misc, assignment]
    torch.get_autocast_dtype = autocast_dtype
    torch.amp.autocast, torch.amp.is_autocast_available = shape_autocast, is_autocast_available  # type: ignore[misc, assignment]
    try:
        with _shape_modes(device, casts):
            yield
    finally:
        torch.autocast, torch.is_autocast_enabled = autocast, is_enabled  # type: ignore[misc]
        torch.get_autocast_dtype = dtype_of
        torch.amp.autocast, torch.amp.is_autocast_available = in_amp, is_available  # type: ignore[misc]


@contextmanager
def _shape_modes(device: Device, casts: ShapeAutocast) -> Iterator[None]:
    with torch.device("meta"), _Values(device, casts):
        yield


@contextmanager
def _shape_modes_again(device: Device, casts: ShapeAutocast, region: AbstractContextManager[None]) -> Iterator[None]:
    with _shape_modes(device, casts), region:
        yield


@contextmanager
def recomputed_shapes(model: nn.Module, device: Device = "cpu") -> Iterator[None]:
    """Within this context, blocks that gradient checkpointing computes again are computed on shapes too.

    The backward pass runs outside all modes of torch functions, so that those blocks must enter them again.
    """
    modules: list[Any] = [module for module in model.modules() if hasattr(module, "_gradient_checkpointing_func")]
    before = [module._gradient_checkpointing_func for module in modules]

    def contexts() -> tuple[Any, Any]:
        modes = torch.overrides._get_current_function_mode_stack()  # type: ignore[no-untyped-call]
        casts = next((mode.casts for mode in reversed(modes) if isinstance(mode, _Values)), ShapeAutocast(device))
        return nullcontext(), _shape_modes_again(device, casts, casts.again())

    again = partial(checkpoint, use_reentrant=False, context_fn=contexts)
    try:
        for module in modules:
            module._gradient_checkpointing_func = again
        yield
    finally:
        for module, function in zip(modules, before, strict=True):
            module._gradient_checkpointing_func = function


class _Values(TorchFunctionMode):
    """Answers for the values of tensors that have none, and the kernels of a device in place of the meta device's."""

    def __init__(self, device: Device, casts: ShapeAutocast) -> None:
        super().__init__()
        self.device, self.casts = device, casts

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name in VALUES and isinstance(args[0], Tensor) and args[0].is_meta:
            return VALUES[name] if name != "__bool__" else not hasattr(args[0], "is_false")
        args, options = self.casts.cast(name, args, options)
        if func is F.scaled_dot_product_attention:
            return _attention(self.device, *args, **options)
        if func is F.dropout and self.device == "cuda":
            return _dropout(*args, **options)
        result = func(*args, **options)
        if isinstance(result, Tensor) and result.is_meta and not result.dim():
            if name == "any" or (name in ("lt", "__lt__") and hasattr(args[0], "is_drawn")):
                result.is_false = True  # type: ignore[attr-defined]  # no token is padding, and no layer dropped
            elif name == "rand":
                result.is_drawn = True  # type: ignore[attr-defined]
        return result


SMALL = 1e-9
"""A number that nothing is divided by in vain."""
VALUES: dict[str, Any] = {"__bool__": True, "item": SMALL, "__float__": SMALL, "__int__": 0, "__index__": 0}
"""Functions that ask for a value, and the answer."""


def _attention(
    device: Device,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention (B, H, T, K) by the kernel that torch takes on a device.

    Fused kernels keep q, k, v, the output and a number for each query; that of CPUs has no dropout, so that the
    products (B, H, T, S) are kept.
    """
    if device == "cuda" or dropout_p == 0.0:
        fused: Tensor = _Fused.apply(query, key, value, attn_mask)  # type: ignore[no-untyped-call]
        return fused
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    dtype = query.dtype
    if dtype in (torch.bfloat16, torch.float16):  # the products are in float32
        query, key, value = query.float(), key.float(), value.float()
    root = math.sqrt(scale if scale is not None else query.shape[-1] ** -0.5)
    scores = (query * root) @ (key * root).transpose(-2, -1)
    if attn_mask is not None or is_causal:
        scores = scores + scores.new_zeros(scores.shape[-2:])
    return (F.dropout(torch.softmax(scores, -1), dropout_p) @ value).to(dtype)


class _Fused(torch.autograd.Function):
    """What a fused attention kernel keeps and returns."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        *rows, heads, length, _ = query.shape
        out = query.new_empty(*rows, length, heads, value.shape[-1]).transpose(-2, -3)  # as the kernels lay it out
        if mask is not None and mask.dtype == torch.bool:
            mask = mask.to(query.dtype)  # each call makes and keeps one
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32), mask)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """A GPU's dropout, which keeps a byte for each number."""
    return torch.native_dropout(input, p, training)[0] if training and p else input


class LiveMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within this context, counts the bytes of the tensors that operations make, and of those that are still alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        """Bytes of tensors that are alive."""
        self.peak = 0
        """The most that were alive at once."""
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        for tensor in _tensors(args):
            self._known.setdefault(id(storage := tensor.untyped_storage()), self._weak(storage, 0))
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if id(storage) not in self._known:
                size = storage.nbytes()
                self.live += size
                self.peak = max(self.peak, self.live)
                self._known[id(storage)] = self._weak(storage, size)
        return result

    def _weak(self, storage: Any, size: int) -> Any:
        key = id(storage)

        def freed(_: Any) -> None:
            self.live -= size
            self._known.pop(key, None)

        return weakref.ref(storage, freed)


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from _tensors(value)


def kept_for_backward(forward: Callable[[], Any], known: Sequence[Tensor]) -> int:
    """Bytes that a forward pass keeps for its backward pass, beside the `known` tensors (parameters and buffers)."""
    own = {tensor.untyped_storage()._cdata for tensor in known}
    kept: dict[int, Any] = {}  # weak references: the graph holds the tensors, and is to free them as it goes

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[id(storage)] = weakref.ref(storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    alive = [storage for reference in kept.values() if (storage := reference()) is not None]
    del result
    return sum(storage.nbytes() for storage in alive)
