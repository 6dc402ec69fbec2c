"""AdamW that updates a chunk of a tensor at a time, its moments in memory or in a file, in float32 or in 8 bits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from deltatune.core.errors import DeltatuneError
from deltatune.training.optimizers.eight_bit_moments import dequantize_moment, quantize_moment_
from deltatune.training.optimizers.moment_places import InFile, InMemory, Values, laid_out
from deltatune.training.optimizers.state_bytes import BLOCK, CHUNK, CHUNK_8BIT, SMALLEST_8BIT
from deltatune.training.scaling.disk_file import DiskFile

FIRST, SECOND = "exp_avg", "exp_avg_sq"
"""Names of the moments, as torch has them."""
FIRST_SCALES, SECOND_SCALES = "exp_avg_absmax", "exp_avg_sq_absmax"
"""Names of the scales of moments in 8 bits."""
FUSED = ("cpu", "cuda", "mps")
"""Devices that have torch's fused kernel."""


@dataclass
class TensorState:
    """What AdamW keeps of one parameter."""

    step: int = 0
    """Updates so far."""
    values: dict[str, Values] = field(default_factory=dict)
    """The moments by name and, in 8 bits, their scales."""


def values_by_name(parameter: Tensor, eight_bit: bool) -> dict[str, tuple[torch.dtype, int]]:
    """Type and number of the values that are kept of a parameter, by name."""
    n = parameter.numel()
    if not eight_bit:
        return dict.fromkeys((FIRST, SECOND), (parameter.dtype, n))
    if n < SMALLEST_8BIT:
        return dict.fromkeys((FIRST, SECOND), (torch.float32, n))
    codes, scales = (torch.uint8, n), (torch.float32, -(-n // BLOCK))
    return {FIRST: codes, SECOND: codes, FIRST_SCALES: scales, SECOND_SCALES: scales}


class ChunkedAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101) with little memory for its states.

    With moments in float32 every contiguous parameter gets the bits of `torch.optim.AdamW(fused=True)`: the same kernel
    runs over the same values, a chunk at a time. With `eight_bit` it gets the bits of `bitsandbytes.optim.AdamW8bit` on
    a CPU, whatever the device: moments of tensors of 4,096 values and more are in 8 bits, smaller ones' in float32.

    `file` keeps the moments, and the memory for them is that of a chunk. The file belongs to this optimizer: `close`
    gives its space back. Sparse gradients raise DeltatuneError.
    """

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        eight_bit: bool = False,
        file: Callable[[int], DiskFile] | None = None,
        chunk: int | None = None,
    ) -> None:
        """`file`: makes a file of so many bytes. `chunk`: values that are updated at a time, a multiple of 256."""
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        chunk = chunk or (CHUNK_8BIT if eight_bit else CHUNK)
        if chunk <= 0 or chunk % BLOCK:
            raise DeltatuneError(f"chunk={chunk}: it must be a multiple of {BLOCK} above 0")
        self.eight_bit, self.chunk = eight_bit, chunk
        self.file: DiskFile | None = None
        self._starts: dict[tuple[Tensor, str], int] = {}
        self.states: dict[Tensor, TensorState] = {}
        """By parameter, once it has been updated."""
        if file is not None:
            members = [parameter for group in self.param_groups for parameter in group["params"]]
            parts = {
                (p, name): n * t.itemsize for p in members for name, (t, n) in values_by_name(p, eight_bit).items()
            }
            self._starts, size = laid_out(parts)
            self.file = file(size or 1)

    def state_of_(self, parameter: Tensor) -> TensorState:
        """What is kept of a parameter, made as zeros if there is nothing yet."""
        if parameter not in self.states:
            values: dict[str, Values] = {}
            for name, (dtype, n) in values_by_name(parameter, self.eight_bit).items():
                if self.file is None:
                    values[name] = InMemory(torch.zeros(n, dtype=dtype, device=parameter.device))
                else:
                    values[name] = InFile(self.file, self._starts[parameter, name], dtype, n)
            self.states[parameter] = TensorState(values=values)
        return self.states[parameter]

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient; `closure` computes the loss again, with gradients, before."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update_(parameter, parameter.grad, group)
        return loss

    def _update_(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        if gradient.is_sparse:
            raise DeltatuneError(f"a gradient of shape {tuple(gradient.shape)} is sparse; AdamW needs dense ones")
        state = self.state_of_(parameter)
        state.step += 1
        flat, gradients = parameter.detach().reshape(-1), gradient.reshape(-1)  # copies, if not contiguous
        update = adamw_chunk_ if not self.eight_bit else adamw_8bit_chunk_ if len(state.values) > 2 else adamw_small_
        for start in range(0, len(flat), self.chunk):
            stop = min(start + self.chunk, len(flat))
            kept = {
                name: values.window(
                    *((start, stop) if name in (FIRST, SECOND) else (start // BLOCK, -(-stop // BLOCK)))
                )
                for name, values in state.values.items()
            }
            here = {name: window.to(flat.device) for name, window in kept.items()}  # the same tensors on a CPU
            update(flat[start:stop], gradients[start:stop], here, state.step, group)
            for name, window in kept.items():
                if here[name] is not window:
                    window.copy_(here[name])
                state.values[name].keep(start if name in (FIRST, SECOND) else start // BLOCK, window)
            del kept, here  # unmaps the windows
        if not parameter.is_contiguous():
            parameter.copy_(flat.view(parameter.shape))

    def close(self) -> None:
        """Give up the states, and the space of the file."""
        self.states.clear()
        if self.file is not None:
            self.file.close()

    # --- as torch's optimizers have it

    def state_dict(self) -> dict[str, Any]:
        """All states as tensors in memory, in the shapes of torch's; scales of 8 bits are flat."""
        content: dict[str, Any] = super().state_dict()
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        content["state"] = {i: self._tensors(p) for i, p in enumerate(parameters) if p in self.states}
        return content

    def _tensors(self, parameter: Tensor) -> dict[str, Tensor]:
        state = self.states[parameter]
        tensors = {"step": torch.tensor(float(state.step))}
        for name, values in state.values.items():
            tensor = values.window(0, values.count).clone()
            tensors[name] = tensor.view(parameter.shape) if name in (FIRST, SECOND) else tensor
        return tensors

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        super().load_state_dict({**state_dict, "state": {}})
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for index, tensors in state_dict["state"].items():
            state = self.state_of_(parameters[index])
            state.step = int(tensors["step"])
            for name, values in state.values.items():
                values.keep(0, values.window(0, values.count).copy_(tensors[name].reshape(-1)))


# --- the arithmetic: each function updates a chunk of a parameter and its moments in place ---

Group = dict[str, Any]
"""The learning rate and the other numbers of a group of parameters."""


def adamw_chunk_(values: Tensor, gradient: Tensor, moments: dict[str, Tensor], step: int, group: Group) -> None:
    """torch's AdamW; a vector of its fused kernel begins at every multiple of 64 bytes, so chunks change no bit."""
    beta1, beta2 = group["betas"]
    adamw(
        [values], [gradient], [moments[FIRST]], [moments[SECOND]], [], [torch.tensor(step - 1.0, device=values.device)],
        fused=values.device.type in FUSED, foreach=False, amsgrad=False, beta1=beta1, beta2=beta2, lr=group["lr"],
        weight_decay=group["weight_decay"], eps=group["eps"], maximize=False,
    )  # fmt: skip


def adamw_8bit_chunk_(values: Tensor, gradient: Tensor, moments: dict[str, Tensor], step: int, group: Group) -> None:
    """bitsandbytes' AdamW on moments in 8 bits: the order of its operations, so that the bits are the same."""
    first = dequantize_moment(moments[FIRST], moments[FIRST_SCALES], signed=True)
    second = dequantize_moment(moments[SECOND], moments[SECOND_SCALES], signed=False)
    correction1, correction2 = _add_gradient_(first, second, gradient, step, group)
    denominator = second.sqrt().div_(correction2).add_(group["eps"])
    _move_(values, group, lambda wide: wide.addcdiv_(first, denominator, value=-group["lr"] / correction1))
    quantize_moment_(first, moments[FIRST], moments[FIRST_SCALES], signed=True)
    quantize_moment_(second, moments[SECOND], moments[SECOND_SCALES], signed=False)


def adamw_small_(values: Tensor, gradient: Tensor, moments: dict[str, Tensor], step: int, group: Group) -> None:
    """bitsandbytes' AdamW on moments in float32, which it computes in another order than torch."""
    first, second = moments[FIRST], moments[SECOND]
    correction1, correction2 = _add_gradient_(first, second, gradient, step, group)
    update = first / second.sqrt().add_(group["eps"] * correction2)
    _move_(values, group, lambda wide: wide.add_(update, alpha=-group["lr"] * correction2 / correction1))


def _add_gradient_(first: Tensor, second: Tensor, gradient: Tensor, step: int, group: Group) -> tuple[float, float]:
    """Move both moments, float32; returns 1 - β₁ᵗ and √(1 - β₂ᵗ)."""
    beta1, beta2 = group["betas"]
    wide = gradient.float()
    first.mul_(beta1).add_(wide, alpha=1.0 - beta1)
    second.mul_(beta2).addcmul_(wide, wide, value=1.0 - beta2)
    return 1.0 - beta1**step, math.sqrt(1.0 - beta2**step)


def _move_(values: Tensor, group: Group, move_: Callable[[Tensor], Tensor]) -> None:
    """Decay values and move them, in float32."""
    wide = values.float()  # the same tensor, if they are
    if group["weight_decay"] > 0:
        wide.mul_(1.0 - group["lr"] * group["weight_decay"])
    move_(wide)
    if wide is not values:
        values.copy_(wide)
