"""Where the moments of an optimizer are: in memory, or in a file of which a window at a time is mapped into memory."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from deltatune.core.errors import DeltatuneError
from deltatune.core.memory import in_bytes
from deltatune.store.atomic_files import CannotWrite, free_bytes, plain_write_errors

ALIGNED = 64
"""Bytes at a multiple of which each tensor begins in the file."""
IN_MEMORY = ("tmpfs", "ramfs", "devtmpfs", "hugetlbfs", "rootfs")
"""File systems that keep files in memory."""
MOUNTS = Path("/proc/self/mountinfo")
"""Where Linux lists its file systems."""
ZEROS = 2**20


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

    file: MomentFile
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
        page = first - first % mmap.ALLOCATIONGRANULARITY  # where a mapping may begin
        mapped = mmap.mmap(self.file.descriptor, end - page, offset=page)
        return torch.frombuffer(mapped, dtype=self.dtype, count=stop - start, offset=first - page)


class MomentFile:
    """A file for moments, which has no name: whatever ends the process, nothing of it is left."""

    def __init__(self, folder: Path, size: int) -> None:
        """Reserves all its bytes at once, as zeros. Raises CannotWrite if the folder is full or cannot be written."""
        self.folder, self.size, self._end = folder, size, 0
        try:
            with plain_write_errors(folder, size):
                self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (open as long as the optimizer)
                self._reserve(size)
        except CannotWrite as error:
            if not error.needed:
                raise CannotWrite(f"{error}; {CHOOSE}", code=error.code) from None
            self._file.close()
            raise CannotWrite(
                f"the optimizer's states need {in_bytes(size)} in a file, and {folder} has "
                f"{in_bytes(free_bytes(folder))} free; {CHOOSE}, or paged-adamw-8bit, which needs a quarter of it",
                size,
                error.code,
            ) from None

    @property
    def descriptor(self) -> int:
        """The open file's number. Raises DeltatuneError after `close`."""
        if self._file.closed:
            raise DeltatuneError(
                "the file of the optimizer's states is closed: the training that it belonged to is over"
            )
        return self._file.fileno()

    def values(self, dtype: torch.dtype, count: int) -> InFile:
        """The next part of the file, for so many values: zeros."""
        part = InFile(self, self._end, dtype, count)
        self._end = aligned(self._end + count * dtype.itemsize)
        assert self._end <= self.size
        return part

    def close(self) -> None:
        """Give the disk its space back."""
        self._file.close()

    def _reserve(self, size: int) -> None:
        """Make the file so long. A hole in it would end the process once the disk is full: a signal, not an error."""
        try:
            os.posix_fallocate(self._file.fileno(), 0, size)
        except AttributeError:  # macOS and Windows
            for written in range(0, size, ZEROS):
                self._file.write(bytes(min(ZEROS, size - written)))
            self._file.flush()


def aligned(size: int) -> int:
    """The next multiple of ALIGNED."""
    return -(-size // ALIGNED) * ALIGNED


# --- the folder ---

CHOOSE = "choose a folder on a disk with optimizer_folder (--optimizer-folder)"


def folder_for(asked: str | None, out: Path | None) -> Path:
    """The folder of the file: the one asked for, else that of the run, else a temporary one that is on a disk.

    Raises DeltatuneError for a folder that is none, or whose files are in memory, and where no folder is on a disk.
    """
    if asked is not None:
        folder = Path(asked).expanduser()
        if not folder.is_dir():
            kind = "is a file" if folder.exists() else "does not exist"
            raise DeltatuneError(f"optimizer_folder: {folder} {kind}; name a folder that is there, on a disk")
        if kind := memory_file_system(folder):
            raise DeltatuneError(
                f"optimizer_folder: {folder} is on {kind}, which keeps files in memory, so that paging would save "
                "nothing; name a folder on a disk"
            )
        return folder
    candidates = list(_candidates(out))
    for folder in candidates:
        if folder.is_dir() and os.access(folder, os.W_OK) and memory_file_system(folder) is None:
            return folder
    raise DeltatuneError(
        f"the file of a paged optimizer needs a folder on a disk, and of {', '.join(map(str, candidates))} none is one "
        f"that can be written; {CHOOSE}"
    )


def _candidates(out: Path | None) -> Iterator[Path]:
    if out is not None:
        yield next(folder for folder in (out, *out.absolute().parents) if folder.is_dir())  # it may not be made yet
    yield Path(tempfile.gettempdir())
    yield Path("/var/tmp")
    yield Path.cwd()


def memory_file_system(folder: Path) -> str | None:
    """The kind of file system of a folder if its files are in memory, such as tmpfs; None elsewhere, and if unknown."""
    try:
        lines = MOUNTS.read_text().splitlines()
    except OSError:
        return None
    place, best, kind = folder.resolve(), -1, ""
    for line in lines:  # man 5 proc: "... / /dev/shm rw - tmpfs tmpfs rw"; of equal mounts the last one is on top
        fields, _, rest = line.partition(" - ")
        mount = Path(fields.split()[4].replace("\\040", " "))
        if place.is_relative_to(mount) and len(mount.parts) >= best:
            best, kind = len(mount.parts), rest.split()[0]
    return kind if kind in IN_MEMORY else None
