"""Offloaded activations: what the forward pass keeps for the backward pass is elsewhere until then.

On a GPU it goes to the host's memory, pinned, as in ZeRO-Infinity (https://arxiv.org/abs/2104.07857); on a CPU into a
file, whose pages the system writes to the disk when it needs the memory. Bits are moved and never changed, so losses
and gradients are the same. With gradient checkpointing only the inputs of the blocks are kept, and only they move.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from deltatune.training.scaling.disk_file import PAGE, DiskFile

SMALLEST = 2**16
"""Bytes of the smallest tensor that moves: smaller ones cost more time than they save memory."""


@contextmanager
def offloaded_activations(
    enabled: bool, device: torch.device, stay: Iterable[Tensor], folder: Callable[[], Path]
) -> Iterator[None]:
    """Within this context tensors of 64 KiB and more that autograd keeps are elsewhere until backward reads them.

    stay: parameters and buffers, which are there anyway. `folder`: that of the file, on a CPU. Raises DeltatuneError
    for a folder that is not on a disk, CannotWrite for one that cannot be written or is full.
    """
    if not enabled:
        yield
        return
    place = HostMemory() if device.type == "cuda" else FilePlace(DiskFile(folder()))
    moves = Moves(place, device, {tensor.untyped_storage()._cdata for tensor in stay})
    try:
        with torch.autograd.graph.saved_tensors_hooks(moves.pack, moves.unpack):
            yield
    finally:
        place.close()


@dataclass(frozen=True)
class Moved:
    """A tensor whose storage is elsewhere."""

    load: Callable[[], Tensor]
    """Gives the bytes of its storage."""
    dtype: torch.dtype
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


class Moves:
    """What autograd does with a tensor that it keeps. Strides are as before, so that every kernel rounds as before."""

    def __init__(self, place: HostMemory | FilePlace, device: torch.device, stay: set[int]) -> None:
        self.place, self.device, self.stay = place, device, stay
        self.known: dict[int, tuple[weakref.ref[torch.UntypedStorage], int, weakref.ref[Callable[[], Tensor]]]] = {}
        """Storages that were moved and live, so that what three maps read is moved once."""

    def pack(self, tensor: Tensor) -> Tensor | Moved:
        """Move a tensor, unless it is small, a parameter, or a small part of what lives in its storage."""
        if tensor.layout != torch.strided or tensor.device.type != self.device.type or type(tensor) is not Tensor:
            return tensor
        storage = tensor.untyped_storage()
        if storage._cdata in self.stay or storage.nbytes() < SMALLEST or 4 * tensor.nbytes < storage.nbytes():
            return tensor
        load = self._load(storage, tensor._version)
        return Moved(load, tensor.dtype, tensor.size(), tensor.stride(), int(tensor.storage_offset()))

    def _load(self, storage: torch.UntypedStorage, version: int) -> Callable[[], Tensor]:
        known = self.known.get(id(storage))
        if known is not None and known[0]() is storage and known[1] == version and (load := known[2]()) is not None:
            return load
        content = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
        load = self.place.put(content)
        self.known = {key: entry for key, entry in self.known.items() if entry[0]() is not None}
        self.known[id(storage)] = (weakref.ref(storage), version, weakref.ref(load))
        return load

    def unpack(self, kept: Tensor | Moved) -> Tensor:
        """The tensor again."""
        if isinstance(kept, Tensor):
            return kept
        storage = kept.load().untyped_storage()
        tensor = torch.empty(0, dtype=kept.dtype, device=storage.device)
        return tensor.set_(storage, kept.offset, kept.size, kept.stride)


class HostMemory:
    """Pinned memory of a GPU's host."""

    def put(self, content: Tensor) -> Callable[[], Tensor]:
        """Keep bytes; the result gives them back on their device."""
        kept = torch.empty(len(content), dtype=torch.uint8, pin_memory=True).copy_(content)
        device = content.device
        return lambda: kept.to(device)

    def close(self) -> None:
        """Nothing is left: the memory goes with the tensors."""


class FilePlace:
    """A file on a disk, filled from its start again once nothing in it is kept."""

    def __init__(self, file: DiskFile) -> None:
        self.file, self.end, self.parts = file, 0, 0

    def put(self, content: Tensor) -> Callable[[], Tensor]:
        """Keep bytes; the result maps them."""
        start, stop = self.end, self.end + len(content)
        self.file.reserve(stop)
        self.file.window(start, stop).copy_(content)
        self.end, self.parts = -(-stop // PAGE) * PAGE, self.parts + 1

        def load() -> Tensor:
            return self.file.window(start, stop)

        weakref.finalize(load, self._free)
        return load

    def _free(self) -> None:
        self.parts -= 1
        if not self.parts:
            self.end = 0

    def close(self) -> None:
        """Give the disk its space back."""
        self.file.close()
