"""The optimizers by name, and the memory that the states of each take, from the sizes of the trained tensors alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

OptimizerName = Literal["adamw", "paged-adamw", "adamw-8bit", "paged-adamw-8bit"]
"""AdamW; `paged`: its moments are in a file, on a GPU in memory that moves to the host; `8bit`: in 8 bits a value."""
OPTIMIZERS: tuple[OptimizerName, ...] = get_args(OptimizerName)

BLOCK = 256
"""Values of 8-bit moments that share a scale."""
SMALLEST_8BIT = 4096
"""Values of the smallest tensor whose moments are in 8 bits; smaller ones keep float32."""
CHUNK = 2**20
"""Values of a tensor that are updated at a time, where the moments are in a file."""
CHUNK_8BIT = 2**18
"""The same for moments in 8 bits: what is computed of them stays in the processor's cache."""
SMALLEST_PAGED_ON_GPU = 100_000
"""Values of the smallest tensor that bitsandbytes pages on a GPU; smaller ones stay in its memory."""


def is_paged(optimizer: OptimizerName) -> bool:
    """Whether the moments are outside of the memory that the model is in."""
    return optimizer.startswith("paged")


def is_8bit(optimizer: OptimizerName) -> bool:
    """Whether the moments have 8 bits a value."""
    return optimizer.endswith("8bit")


def moment_bytes(optimizer: OptimizerName, numel: int) -> int:
    """Bytes of both moments of one float32 tensor, wherever they are."""
    if is_8bit(optimizer) and numel >= SMALLEST_8BIT:
        return 2 * (numel + 4 * -(-numel // BLOCK))
    return 2 * 4 * numel


def state_bytes(optimizer: OptimizerName, tensor_numels: Iterable[int], device: str = "cpu") -> int:
    """Bytes that an optimizer's states keep in memory between steps, for float32 tensors of these numbers of values.

    device: "cuda" for a GPU, whose own memory is counted. What an update needs beside is bounded by `CHUNK`: at most
    32 MB in all, whatever is trained.
    """
    if not is_paged(optimizer):
        return sum(moment_bytes(optimizer, numel) for numel in tensor_numels)
    if device != "cuda":
        return 0
    return sum(moment_bytes(optimizer, numel) for numel in tensor_numels if numel < SMALLEST_PAGED_ON_GPU)


def file_bytes(optimizer: OptimizerName, tensor_numels: Iterable[int]) -> int:
    """Bytes of the file that a paged optimizer keeps the states in; 0 for one that has none."""
    return sum(moment_bytes(optimizer, numel) for numel in tensor_numels) if is_paged(optimizer) else 0
