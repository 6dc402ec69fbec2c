"""Where the moments of an optimizer are: in memory, or in a file of which a window at a time is mapped into memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from deltatune.training.scaling.disk_file import DiskFile

ALIGNED = 64
"""Bytes at a multiple of which each tensor begins in the file."""
LARGE_PAGE = 2**21
"""The same for large tensors: bytes that a processor maps at once, where the file system can. That is far quicker."""

Key = TypeVar("Key")


class Values(Protocol):
    """A flat tensor, wherever it is."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of the values."""

    @property
    def count(self) -> int:
        """Number of values."""

    def window(self, start: int, stop: int) -> Tensor:
        """The values from `start` up to `stop`: what is written into the tensor is written into the place."""


@dataclass(frozen=True)
class InMemory:
    """Values in the memory of a device."""

    values: Tensor
    """A flat tensor."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of the values."""
        return self.values.dtype

    @property
    def count(self) -> int:
        """Number of values."""
        return self.values.numel()

    def window(self, start: int, stop: int) -> Tensor:
        """The values from `start` up to `stop`."""
        return self.values[start:stop]


@dataclass(frozen=True)
class InFile:
    """Values in a part of a file. A window of them is mapped as long as its tensor lives."""

    file: DiskFile
    offset: int
    """First byte."""
    dtype: torch.dtype
    """Type of the values."""
    count: int
    """Number of values."""

    def window(self, start: int, stop: int) -> Tensor:
        """The values from `start` up to `stop`."""
        size = self.dtype.itemsize
        return self.file.window(self.offset + start * size, self.offset + stop * size, self.dtype)


def laid_out(sizes: Mapping[Key, int]) -> tuple[dict[Key, int], int]:
    """Where in a file parts of so many bytes begin, the largest first, and the bytes of the file."""
    starts, end = {}, 0
    for key, size in sorted(sizes.items(), key=lambda item: -item[1]):
        unit = LARGE_PAGE if size >= 4 * LARGE_PAGE else ALIGNED
        starts[key] = -(-end // unit) * unit
        end = starts[key] + size
    return starts, end
