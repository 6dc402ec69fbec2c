"""Block-wise quantisation: values in blocks, each block scaled by its largest magnitude, each value the nearest code.

The arithmetic, its order included, is that of bitsandbytes 0.50, so that the bits are the same.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from deltatune.core.errors import DeltatuneError
from deltatune.core.quantization.codebooks import GRID, nearest_on_grid, on_device

CHUNK = 1 << 15
"""Bytes of codes that are dequantised at once: what they become stays in the processor's cache."""
QUANTIZED_AT_ONCE = 1 << 20
"""Values that are quantised at once: the numbers between a value and its code take seven times its memory."""
SMALLEST = 1e-38
"""A block's magnitude counts as at least this much: blocks of zeros become zeros."""


def quantize_4bit(values: Tensor, table: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Packed codes (⌈N/2⌉,) uint8 of values (N,), and the largest magnitude of each block (⌈N/block⌉,) in float32.

    table: the value (16,) of each code, in any order. The last block may be shorter. A value in the middle of two table
    values gets the lower one. Raises DeltatuneError for values that are not finite.
    """
    flat = values.reshape(-1)
    step = max(QUANTIZED_AT_ONCE, block)
    parts = [
        _quantize_part(flat[start : start + step].float(), table, block) for start in range(0, max(1, len(flat)), step)
    ]
    codes, absmax = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    if not absmax.isfinite().all():
        count = int((~flat.isfinite()).sum())
        raise DeltatuneError(f"{count:,} of {flat.numel():,} values are infinite or NaN, which no code stands for")
    return codes, absmax


def _quantize_part(flat: Tensor, table: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Codes and magnitudes of values (n,) in float32, of which only the last block of the matrix may be shorter."""
    whole = flat.numel() - flat.numel() % block
    blocks, rest = flat[:whole].view(-1, block), flat[whole:]
    absmax = blocks.abs().amax(1)
    scaled = (blocks * (1.0 / absmax.clamp(min=SMALLEST))[:, None]).clamp_(-1, 1).view(-1)
    if len(rest):  # bitsandbytes divides here and multiplies above
        last = rest.abs().amax().clamp(min=SMALLEST)
        absmax, scaled = torch.cat([absmax, last[None]]), torch.cat([scaled, (rest / last).clamp_(-1, 1)])
    order = torch.argsort(table, stable=True)  # FP4's codes are not in the order of their values
    ascending = table[order]
    bounds = ((ascending[:-1] + ascending[1:]) / 2).to(flat.device)
    codes = torch.bucketize(F.pad(scaled, (0, len(scaled) % 2)), bounds, out_int32=True)  # an even number
    return pack(order.to(torch.uint8).to(flat.device)[codes]), absmax


def quantize_8bit(values: Tensor, table: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Codes (N,) uint8 of finite values (N,), and the largest magnitude of each block (⌈N/block⌉,) in float32.

    table: the value (256,) of each code, ascending. As in bitsandbytes, a value is first rounded to a grid of 65,536
    points and then to the nearest of the table, so that near the middle of two values it may get the other one.
    """
    flat = values.reshape(-1).float()
    blocks = F.pad(flat, (0, -len(flat) % block)).view(-1, block)
    absmax = blocks.abs().amax(1)
    scaled = (blocks * (1.0 / absmax)[:, None]).clamp_(-1, 1)
    points = ((scaled + 1) * 0.5 * (GRID - 1) + 0.5).nan_to_num_(0.0).int()  # 0 / 0 in a block of zeros: code 0
    nearest = nearest_on_grid(table).to(flat.device)
    return nearest[points].view(-1)[: len(flat)], absmax


def dequantize_8bit(codes: Tensor, absmax: Tensor, table: Tensor, block: int) -> Tensor:
    """The values (N,), in float32, of codes (N,) uint8 and their blocks' magnitudes."""
    values = on_device(table, codes.device).index_select(0, codes.int())
    return _scale_(values, absmax, block)


def _scale_(values: Tensor, absmax: Tensor, block: int) -> Tensor:
    """Multiply each block of values (N,) by its magnitude, in place; the last block may be shorter."""
    whole = len(values) // block
    values[: whole * block].view(-1, block).mul_(absmax[:whole, None])
    if whole * block < len(values):
        values[whole * block :] *= absmax[whole]
    return values


def dequantize_rows(codes: Tensor, absmax: Tensor, unit: float, dtype: torch.dtype) -> Tensor:
    """The matrix code · absmax · unit, (out, in) of this dtype, of codes (out, in) int8 and a magnitude (out,) for each
    row: computed in float32 in this order, rounded once, some rows at a time."""
    values = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    step = _at_once(codes, codes.shape[0], max(1, 2 * CHUNK // max(1, codes.shape[1])))
    for start in range(0, codes.shape[0], step):
        rows = slice(start, start + step)
        values[rows] = codes[rows].float().mul_(absmax[rows, None]).mul_(unit)
    return values


def _at_once(codes: Tensor, all_of_them: int, chunk: int) -> int:
    """How many codes to read at once: all on a GPU, and where each chunk would be traced."""
    return max(1, all_of_them if torch.compiler.is_compiling() or codes.is_cuda else chunk)


def pack(codes: Tensor) -> Tensor:
    """Codes of 4 bits (N,), N even -> bytes (N/2,): the first code of each pair in the high half."""
    return (codes[::2] << 4) | codes[1::2]


def unpack(packed: Tensor, count: int) -> Tensor:
    """Bytes -> the first `count` codes of 4 bits."""
    return torch.stack([packed >> 4, packed & 0xF], dim=1).view(-1)[:count]


def dequantize_4bit(
    packed: Tensor, absmax: Tensor, table: Tensor, block: int, shape: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    """A matrix of this shape and dtype from packed codes of 4 bits: computed in float32, rounded once.

    A byte is looked up as a pair of values, which 64-bit integers carry, a chunk at a time.
    """
    count, table = shape[0] * shape[1], on_device(table, packed.device)
    pairs = torch.stack([table.repeat_interleave(16), table.repeat(16)], dim=1).view(torch.int64).view(-1)  # (256,)
    values = torch.empty(2 * len(packed), dtype=dtype, device=packed.device)
    step = _at_once(packed, len(packed), max(CHUNK, block // 2))
    for start in range(0, len(packed), step):
        part = pairs.index_select(0, packed[start : start + step].int()).view(torch.float32)
        values[2 * start : 2 * start + len(part)] = _scale_(part, absmax[2 * start // block :], block)
    return values[:count].view(shape)
