"""The values that a code of 4 or 8 bits stands for: NF4, FP4, the dynamic maps of bitsandbytes, and FP8.

Every table lies in [-1, 1]; a block's values are its codes' values times the block's largest magnitude.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

NF4_VALUES = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""Quantiles of the normal distribution, 7 below and 8 above an exact 0: https://arxiv.org/abs/2305.14314"""
FP4_MAGNITUDES = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)
"""Of the codes 0 to 7, before division by 12: one sign bit, two of exponent, one of fraction."""
GRID = 1 << 16
"""Points of [-1, 1] to which values are rounded before their code of 8 bits is looked up."""
_CODES: dict[tuple[float, ...], Tensor] = {}
_ON_DEVICE: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}
"""Tables with their copies on GPUs, by the table's id and the device."""


def nf4() -> Tensor:
    """The 16 values of NF4 (16,), ascending, in float32. As every table here: on the CPU, shared, read only."""
    return _NF4


def fp4() -> Tensor:
    """The 16 values of bitsandbytes' FP4 (16,) by code, in float32; 0 has two codes, neither of them -0."""
    return _FP4


def dynamic_map(signed: bool = True) -> Tensor:
    """The 256 values of bitsandbytes' dynamic 8-bit type (256,), ascending: https://arxiv.org/abs/1511.04561

    Seven decades; the larger the decade, the more values it has. Unsigned, for AdamW's second moment: all above 0.
    """
    return _DYNAMIC[signed]


def fp8_map() -> Tensor:
    """The 253 values of the 8-bit float E4M3 over its largest, 448, and 1 three times more: (256,), ascending."""
    return _FP8


def _table(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device="cpu")


def _fp4() -> Tensor:
    positive = _table(FP4_MAGNITUDES)
    return torch.cat([positive, 0.0 - positive]) / 12


def _dynamic_map(signed: bool) -> Tensor:
    values: list[float] = [0.0, 1.0]
    for decade in range(7):
        count = (2**decade if signed else 2 ** (decade + 1)) + 1
        bounds = torch.linspace(0.1, 1, count, dtype=torch.float32, device="cpu")
        means = 10 ** (decade - 6) * ((bounds[:-1] + bounds[1:]) / 2)
        values += means.tolist()
        if signed:
            values += (-means).tolist()
    return _table(sorted(values))


def _fp8_map() -> Tensor:
    floats = torch.arange(256, dtype=torch.uint8, device="cpu").view(torch.float8_e4m3fn).float() / 448
    values = torch.unique(floats[floats.isfinite()])
    return torch.cat([values, values.new_ones(256 - len(values))])


_NF4, _FP4, _FP8 = _table(NF4_VALUES), _fp4(), _fp8_map()  # made on import: torch.compile cannot trace the making
_DYNAMIC = {signed: _dynamic_map(signed) for signed in (True, False)}


def on_device(table: Tensor, device: torch.device) -> Tensor:
    """One of the tables here on a device: copied to a GPU once, unless a trace would have to know of the copy."""
    if device.type != "cuda" or table.device == device or torch.compiler.is_compiling():
        return table.to(device)
    key = (id(table), device)
    if key not in _ON_DEVICE or _ON_DEVICE[key][0] is not table:
        with torch.inference_mode(False):
            _ON_DEVICE[key] = table, table.to(device)
    return _ON_DEVICE[key][1]


def nearest_on_grid(table: Tensor) -> Tensor:
    """The code (65536,) uint8 of the value nearest to each point of the grid; the lower of two.

    table: the values (256,) of one of the maps here. bitsandbytes' kernel for CPUs looks codes up in this way, so that
    codes nearer to 0 than 1.5e-5 are never used.
    """
    key = tuple(table[[0, 1, 127, 128, 255]].tolist())
    if key not in _CODES:
        points = -1.0 + (2.0 * torch.arange(GRID, dtype=torch.float32, device="cpu")) / (GRID - 1)
        _CODES[key] = torch.bucketize(points, 0.5 * (table[:-1] + table[1:])).to(torch.uint8)
    return _CODES[key]
