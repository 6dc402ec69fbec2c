"""Weights of a model in safetensors files, read one tensor at a time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from deltatune.core.errors import DeltatuneError
from deltatune.core.input_validation.regular_files import read_text
from deltatune.core.input_validation.strict_json import loads

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Names of types in safetensors; of others only the name is known before a tensor is read."""


@dataclass(frozen=True)
class FileTensor:
    """A tensor of a safetensors file: its name, shape and type; the values are read at `[...]`."""

    file: str
    key: str
    shape: tuple[int, ...]
    kind: str
    """Its type in safetensors' words, such as `BF16`."""

    @property
    def dtype(self) -> torch.dtype | None:
        """Its type; None for one that is not in DTYPES."""
        return DTYPES.get(self.kind)

    def __getitem__(self, index: EllipsisType) -> Tensor:
        """The tensor, read from the disk; no other part of the file stays in memory."""
        with safe_open(self.file, framework="pt") as file:
            tensor: Tensor = file.get_tensor(self.key)  # a view of the mapped file
        return tensor.clone()

    def get_shape(self) -> list[int]:
        """The shape, as safetensors' slices tell it."""
        return list(self.shape)

    def get_dtype(self) -> str:
        """The type, as safetensors' slices tell it."""
        return self.kind


def file_tensors(place: str) -> dict[str, FileTensor]:
    """All tensors of a model by name, from a folder or a name on the hub; only the files' headers are read.

    Raises DeltatuneError where there are no safetensors files or a file is missing, OSError and SafetensorError for
    files that cannot be read.
    """
    tensors: dict[str, FileTensor] = {}
    for file in weight_files(place):
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118 (no dictionary)
                part = opened.get_slice(key)
                tensors[key] = FileTensor(file, key, tuple(part.get_shape()), str(part.get_dtype()))
    return tensors


def weight_files(place: str) -> list[str]:
    """The safetensors files of a folder or hub name: one, or the shards that its index lists."""
    single = _cached(place, SAFE_WEIGHTS_NAME)
    if single is not None:
        return [single]
    index = _cached(place, SAFE_WEIGHTS_INDEX_NAME)
    if index is None:
        raise DeltatuneError(f"{place} has no weights as safetensors: no {SAFE_WEIGHTS_NAME}, no index of shards")
    names = loads(read_text(Path(index)), index)
    names = names.get("weight_map") if isinstance(names, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise DeltatuneError(f"{index} does not say which file holds which tensor: it has no weight_map of names")
    outside = sorted({name for name in names.values() if Path(name).is_absolute() or ".." in Path(name).parts})
    if outside:
        raise DeltatuneError(f"{index} names files outside the model's folder: {', '.join(outside[:3])}")
    if Path(place).is_dir():
        files = sorted({str(Path(place) / name) for name in names.values()})
        missing = [Path(file).name for file in files if not Path(file).is_file()]
        if missing:
            raise DeltatuneError(f"{place} lacks {len(missing)} of its {len(files)} weight files: {missing[0]}")
        return files
    shards, _ = get_checkpoint_shard_files(place, index)  # type: ignore[no-untyped-call]
    return [str(file) for file in shards]


def _cached(place: str, name: str) -> str | None:
    if Path(place).is_dir():
        return str(Path(place) / name) if (Path(place) / name).is_file() else None
    found: Any = cached_file(place, name, _raise_exceptions_for_missing_entries=False)
    return None if found is None else str(found)
