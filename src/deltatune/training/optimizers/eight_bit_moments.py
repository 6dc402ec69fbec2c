"""Moments in 8 bits: each block of 256 values has a scale, each value the nearest of 256 codes, as in bitsandbytes.

Dettmers et al. 2021, https://arxiv.org/abs/2110.02861. bitsandbytes' kernel for CPUs finds codes through a table of
65,536 entries over [-1, 1], so codes nearer to 0 than 1.5e-5 are never used. Here it is the same, on every device: the
bits are those of bitsandbytes on a CPU, and a second moment, which is divided by, is never rounded to 0.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from deltatune.core.quantization.codebooks import GRID, dynamic_map, nearest_on_grid
from deltatune.training.optimizers.state_bytes import BLOCK

SMALLEST_NORMAL = torch.finfo(torch.float32).tiny


@cache
def _code_values(signed: bool, device: torch.device) -> Tensor:
    """The value of each code, (256,)."""
    return dynamic_map(signed).to(device)


@cache
def _codes_on_grid(signed: bool, device: torch.device) -> Tensor:
    """The code of each point of the grid over [-1, 1], (65536,) uint8."""
    return nearest_on_grid(dynamic_map(signed)).to(device)


def dequantize_moment(codes: Tensor, scales: Tensor, signed: bool) -> Tensor:
    """The values (N,), float32, of codes (N,) and their blocks' scales (⌈N / 256⌉,)."""
    values = _code_values(signed, codes.device).index_select(0, codes.int())
    blocked, rest = _split(values)
    blocked.mul_(scales[: len(blocked), None])
    if len(rest):
        rest.mul_(scales[-1])
    return values


def quantize_moment_(values: Tensor, codes: Tensor, scales: Tensor, signed: bool) -> None:
    """Write the codes and the scales of values (N,) float32, the largest magnitude of each block; `values` are lost."""
    blocked, rest = _split(values)
    scales[: len(blocked)] = blocked.abs().amax(1)
    if len(rest):
        scales[-1] = rest.abs().amax()
    inverse = 1.0 / scales
    blocked.mul_(inverse[: len(blocked), None])
    if len(rest):
        rest.mul_(inverse[-1])
    if bool((scales < SMALLEST_NORMAL).any()):  # 1 / scale may be infinite, and 0 times that no number: code 0
        values.nan_to_num_(nan=-1.0).clamp_(-1.0, 1.0)
    points = values.add_(1.0).mul_((GRID - 1) / 2).add_(0.5).int()
    torch.index_select(_codes_on_grid(signed, values.device), 0, points, out=codes)


def _split(values: Tensor) -> tuple[Tensor, Tensor]:
    """Whole blocks (N / 256, 256) and the rest, both views."""
    whole = len(values) - len(values) % BLOCK
    return values[:whole].view(-1, BLOCK), values[whole:]
