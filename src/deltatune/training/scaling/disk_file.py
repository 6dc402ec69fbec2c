"""A file without a name on a disk, of which parts are mapped into memory, and the folder that it is in.

The system keeps its pages in memory while there is some, and writes them to the disk when there is none: they are no
memory of the process.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from deltatune.core.errors import DeltatuneError
from deltatune.core.memory import in_bytes
from deltatune.store.atomic_files import CannotWrite, free_bytes, plain_write_errors

IN_MEMORY = ("tmpfs", "ramfs", "devtmpfs", "hugetlbfs", "rootfs")
"""File systems that keep files in memory."""
MOUNTS = Path("/proc/self/mountinfo")
"""Where Linux lists its file systems."""
PAGE = mmap.ALLOCATIONGRANULARITY
"""Bytes at a multiple of which a mapping may begin."""
ZEROS = 2**20


class DiskFile:
    """Whatever ends the process, nothing of the file is left."""

    def __init__(self, folder: Path, size: int = 0, advice: str = "") -> None:
        """An empty file, or one with so many bytes reserved; `advice`: see `reserve`. Raises CannotWrite."""
        self.folder, self.size, self.advice = folder, 0, advice
        try:
            with plain_write_errors(folder), tempfile.TemporaryFile(dir=folder) as file:
                self._number = os.dup(file.fileno())
                self._end = weakref.finalize(self, os.close, self._number)
        except CannotWrite as error:
            raise CannotWrite(f"{error}; {CHOOSE}", code=error.code) from None
        self.reserve(size)

    def reserve(self, size: int) -> None:
        """Make the file at least so long, with zeros. Raises CannotWrite, with the advice, where the disk is full.

        The disk must have the bytes before they are written: on a full one, a mapping without them ends the process.
        """
        if size <= self.size:
            return
        try:
            with plain_write_errors(self.folder, size):
                self._extend(size)
        except CannotWrite as error:
            if not error.needed:
                raise
            free = in_bytes(free_bytes(self.folder))
            self.close()
            raise CannotWrite(
                f"{in_bytes(size)} are needed in a file, and {self.folder} has {free} free; {CHOOSE}{self.advice}",
                size,
                error.code,
            ) from None
        self.size = size

    def _extend(self, size: int) -> None:
        try:
            os.posix_fallocate(self._number, self.size, size - self.size)
        except AttributeError:  # macOS and Windows
            os.lseek(self._number, self.size, os.SEEK_SET)
            written = self.size
            while written < size:
                written += os.write(self._number, bytes(min(ZEROS, size - written)))

    def window(self, start: int, stop: int, dtype: torch.dtype = torch.uint8) -> Tensor:
        """The bytes from `start` up to `stop` as a flat tensor, mapped as long as it lives: writing it writes them.

        Raises DeltatuneError after `close`.
        """
        self._check_open()
        page = start - start % PAGE
        mapped = mmap.mmap(self._number, stop - page, offset=page)
        return torch.frombuffer(mapped, dtype=dtype, count=(stop - start) // dtype.itemsize, offset=start - page)

    def read(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """A copy of the bytes from `start` up to `stop`, flat."""
        values = torch.empty((stop - start) // dtype.itemsize, dtype=dtype)
        self._all(os.preadv, values, start)
        return values

    def write(self, start: int, values: Tensor) -> None:
        """Write the bytes of a flat tensor from `start` on. Raises CannotWrite."""
        with plain_write_errors(self.folder):
            self._all(os.pwritev, values, start)

    def _all(self, move: Callable[[int, list[memoryview], int], int], values: Tensor, start: int) -> None:
        self._check_open()
        left = values.view(torch.uint8).numpy().data
        while len(left):
            moved = move(self._number, [left], start)
            if not moved:
                raise DeltatuneError(f"the file in {self.folder} has become shorter; another process has changed it")
            left, start = left[moved:], start + moved

    def _check_open(self) -> None:
        if not self._end.alive:
            raise DeltatuneError("the file is closed: the training that it belonged to is over")

    def close(self) -> None:
        """Give the disk its space back."""
        self._end()


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
        if in_memory := memory_file_system(folder):
            raise DeltatuneError(
                f"optimizer_folder: {folder} is on {in_memory}, which keeps files in memory, so that paging would save "
                "nothing; name a folder on a disk"
            )
        return folder
    candidates = list(_candidates(out))
    for folder in candidates:
        if folder.is_dir() and os.access(folder, os.W_OK) and memory_file_system(folder) is None:
            return folder
    raise DeltatuneError(
        f"a file for tensors needs a folder on a disk, and of {', '.join(map(str, candidates))} none is one "
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
