"""Tensors of an adapter: read from a file, checked against the adapter, loaded all or not at all."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from deltatune.core.adapter import Adapter
from deltatune.core.adapter_shape import mismatches
from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.host import Host
from deltatune.core.input_validation.regular_files import check_regular
from deltatune.core.method import Method
from deltatune.core.sites.site import Sites
from deltatune.store.atomic_files import plain_write_errors


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file. Raises DeltatuneError if it is damaged."""
    check_regular(path)
    try:
        return load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise DeltatuneError(f"cannot read {path}: {error}; the file is damaged") from None


@contextmanager
def opened_tensors(path: Path) -> Iterator[Any]:
    """A safetensors file whose tensors are read as they are asked for. Raises DeltatuneError if it is damaged."""
    check_regular(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            yield file
    except (safetensors.SafetensorError, OSError) as error:
        raise DeltatuneError(f"cannot read {path}: {error}; the file is damaged") from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file."""
    contiguous = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    size = sum(tensor.numel() * tensor.element_size() for tensor in contiguous.values())
    with plain_write_errors(path, size):
        save_file(contiguous, path, metadata={"format": "pt"})


@dataclass(frozen=True)
class Streamed:
    """A tensor that is written piece by piece, so that it need not be in memory as a whole."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: Callable[[], Iterable[Tensor]]
    """Its values in order, cut anywhere."""

    def numel(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    def element_size(self) -> int:
        """Bytes of a value."""
        return self.dtype.itemsize


def write_pieces(path: Path, tensors: Mapping[str, Streamed]) -> None:
    """Write the file that `write_tensors` writes of the same tensors, with one piece in memory at a time."""
    header, size = _header(tensors)
    with plain_write_errors(path, 8 + len(header) + size), path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for _, tensor in _in_file_order(tensors):
            for piece in tensor.pieces():
                flat = piece.detach().reshape(-1)
                file.write(memoryview(flat.view(torch.uint8).cpu().numpy()) if len(flat) else b"")


def file_size(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of the file that `write_tensors` writes, from the tensors' names, dtypes and shapes alone."""
    header, size = _header(tensors)
    return 8 + len(header) + size


def _header(tensors: Mapping[str, Tensor | Streamed]) -> tuple[bytes, int]:
    """A safetensors header, padded, and the bytes of the tensors behind it."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in _in_file_order(tensors):
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return text.ljust(-(-len(text) // 8) * 8), end


def _in_file_order(tensors: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The largest dtypes come first, so that every tensor is aligned."""
    return sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))


DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Names of the dtypes in a safetensors header."""


def check_tensors(tensors: Mapping[str, Tensor], name: str) -> None:
    """Raise DeltatuneError naming every tensor that is empty or not finite, and for those in pieces (FSDP)."""
    pieces = sorted(key for key, tensor in tensors.items() if hasattr(tensor, "full_tensor"))
    if pieces:
        raise DeltatuneError(
            f"adapter {name!r} cannot be saved: {len(pieces)} of its tensors are in pieces on several processes, "
            f"such as {pieces[0]}; keep adapters whole: "
            "fully_shard(..., ignored_params=set(host.model.deltatune.parameters()))"
        )
    problems = [f"{key} is empty" for key, tensor in tensors.items() if tensor.numel() == 0]
    problems += not_finite(tensors)
    raise_all(problems, f"adapter {name!r} cannot be saved:" if problems else "")


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """What to say of every tensor that holds NaN or infinity."""
    problems = []
    for name, tensor in tensors.items():
        values = tensor.detach()
        values = values if values.is_floating_point() and values.element_size() > 1 else values.float()
        finite = torch.isfinite(values)
        if not finite.all():
            count, kind = int((~finite).sum()), "NaN" if values.isnan().any() else "infinity"
            problems.append(f"tensor {name} has {count:,} of {values.numel():,} values that are not finite: {kind}")
    return problems


def attach_filled(
    host: Host,
    name: str,
    method: Method,
    tensors: Mapping[str, Tensor],
    error_heading: str,
    *,
    seed: int = 0,
    head: nn.Module | bool | None = None,
    extra: Mapping[str, Any] | None = None,
    problems: Sequence[str] = (),
    check: Callable[[Adapter], list[str]] = lambda adapter: [],
    finite: bool = False,
    sites: Sites | None = None,
) -> Adapter:
    """Attach a method's adapter with these tensors, or raise one error under `error_heading` and change nothing.

    The error also lists `problems`, found before, and what `check` finds on the attached adapter. `finite`: all values
    are known to be finite. `sites`: where it may act, as of `Host.attach`.
    """
    before = host.route
    adapter = host.attach(name, method, seed=seed, head=head, extra=extra, sites=sites)
    found = [
        *problems,
        *check(adapter),
        *mismatches(adapter.tensors(), tensors),
        *([] if finite else not_finite(tensors)),
    ]
    if found:
        host.detach(name)
        host.use(before)
        raise_all(found, error_heading)
    adapter.load_tensors(tensors)
    adapter.trained_rows = None  # the caller may know them
    return adapter
