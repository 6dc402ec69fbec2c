"""Tensors mapped from a safetensors file: only the header is read, and each tensor is made when it is asked for."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltatune.core.errors import DeltatuneError
from deltatune.core.input_validation.regular_files import check_regular
from deltatune.core.input_validation.strict_json import loads
from deltatune.store.tensors import DTYPES, not_finite, read_tensors

MAX_HEADER = 100_000_000
"""Bytes of a header, as safetensors has it."""
_BY_NAME = {name: dtype for dtype, name in DTYPES.items()}


@dataclass(frozen=True)
class _Place:
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    """Bytes from the file's beginning."""


class MappedTensors(Mapping[str, Tensor]):
    """Tensors by name whose values are in a file until they are read; a change of one stays in memory.

    The file must not be cut while this lives: it may be removed or replaced by renaming.
    """

    def __init__(self, content: mmap.mmap, places: Mapping[str, _Place]) -> None:
        self._content, self._places = content, places

    def __getitem__(self, name: str) -> Tensor:
        place = self._places[name]
        count = math.prod(place.shape)
        if not count:
            return torch.empty(place.shape, dtype=place.dtype)
        flat = torch.frombuffer(self._content, dtype=place.dtype, count=count, offset=place.start)
        return flat.view(place.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, which is not made for it."""
        return self._places[name].shape

    def not_finite(self) -> list[str]:
        """What to say of every tensor that holds NaN or infinity; neighbours in the file are looked at together."""
        for dtype, start, count in self._runs():
            values = torch.frombuffer(self._content, dtype=dtype, count=count, offset=start)
            if not torch.isfinite(values).all():
                return not_finite(self)
        return []

    def _runs(self) -> Iterator[tuple[torch.dtype, int, int]]:
        """(dtype, first byte, values) of the tensors that follow each other in the file."""
        dtype, begin, end = torch.uint8, 0, 0
        for place in sorted(self._places.values(), key=lambda place: place.start):
            size = math.prod(place.shape) * place.dtype.itemsize
            if place.dtype != dtype or place.start != end:
                if dtype.is_floating_point and end > begin:
                    yield dtype, begin, (end - begin) // dtype.itemsize
                dtype, begin = place.dtype, place.start
            end = place.start + size
        if dtype.is_floating_point and end > begin:
            yield dtype, begin, (end - begin) // dtype.itemsize


def map_tensors(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a safetensors file, mapped. Raises DeltatuneError if it is damaged."""
    check_regular(path)
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > MAX_HEADER:
                return read_tensors(path)
            header = loads(file.read(size), path)
            places = _places(header, 8 + size, path.stat().st_size)
            if not places:
                return read_tensors(path)
            return MappedTensors(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), places)
    except (DeltatuneError, OSError, ValueError):
        return read_tensors(path)  # which says what is wrong with it


def _places(header: Any, begin: int, size: int) -> dict[str, _Place] | None:
    """Where each tensor is; None for a header that is wrong or holds more than is known here."""
    if not isinstance(header, dict):
        return None
    places, spans = {}, []
    for name, content in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype, shape = _BY_NAME[content["dtype"]], tuple(content["shape"])
            start, end = content["data_offsets"]
        except (KeyError, TypeError, ValueError):
            return None
        if not all(type(number) is int and number >= 0 for number in (start, end, *shape)):
            return None
        if end - start != math.prod(shape) * dtype.itemsize:
            return None
        places[name] = _Place(dtype, shape, begin + start)
        spans.append((start, end))
    end = 0
    for start, stop in sorted(spans):
        if start != end:
            return None
        end = stop
    return places if begin + end == size else None
