"""Where the moments of an optimizer are: in memory, or in a file of which a window at a time is in memory."""

from __future__ import annotations

import os
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
        """The values from `start` up to `stop`, to read and to write; `keep` them once written."""

    def keep(self, start: int, window: Tensor) -> None:
        """Have what was written into a window from `start` on in its place."""


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

    def keep(self, start: int, window: Tensor) -> None:
        """Nothing: the window is the place."""


@dataclass(frozen=True)
class InFile:
    """Values in a part of a file. A window of whole large pages is mapped as long as its tensor lives; others are read.

    Small pages are mapped one by one, which takes several times as long as reading and writing them.
    """

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
        first, end = self.offset + start * size, self.offset + stop * size
        return (
            self.file.window(first, end, self.dtype) if _mapped(first, end) else self.file.read(first, end, self.dtype)
        )

    def keep(self, start: int, window: Tensor) -> None:
        """Write a window that was read."""
        first = self.offset + start * self.dtype.itemsize
        if not _mapped(first, first + window.nbytes):
            self.file.write(first, window)


def _mapped(first: int, end: int) -> bool:
    """Whether bytes of a file are mapped: those that large pages begin with, and all where files are read otherwise."""
    return (first % LARGE_PAGE == 0 and end - first >= LARGE_PAGE) or not hasattr(os, "preadv")


def laid_out(sizes: Mapping[Key, int]) -> tuple[dict[Key, int], int]:
    """Where in a file parts of so many bytes begin, the largest first, and the bytes of the file."""
    starts, end = {}, 0
    for key, size in sorted(sizes.items(), key=lambda item: -item[1]):
        unit = LARGE_PAGE if size >= 4 * LARGE_PAGE else ALIGNED
        starts[key] = -(-end // unit) * unit
        end = starts[key] + size
    return starts, end
