"""Tensors of an adapter: read from a file, checked against the adapter, loaded all or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from deltatune.core.adapter import Adapter
from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.host import Host
from deltatune.core.method import Method


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file. Raises DeltatuneError if it is damaged."""
    try:
        return load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise DeltatuneError(f"cannot read {path}: {error}; the file is damaged") from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file."""
    contiguous = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    save_file(contiguous, path, metadata={"format": "pt"})


def check_tensors(tensors: Mapping[str, Tensor], name: str) -> None:
    """Raise DeltatuneError naming every tensor that is empty or not finite."""
    problems = [f"{key} is empty" for key, tensor in tensors.items() if tensor.numel() == 0]
    problems += [f"{key} has values that are not finite" for key, t in tensors.items() if not torch.isfinite(t).all()]
    raise_all(problems, f"adapter {name!r} cannot be saved:" if problems else "")


def mismatches(adapter: Adapter, tensors: Mapping[str, Tensor]) -> list[str]:
    """List tensors that are missing, extra or misshapen for an adapter."""
    expected = adapter.tensors()
    problems = [f"tensor {key} is missing from the file" for key in expected if key not in tensors]
    problems += [f"tensor {key} is in the file but not in the adapter" for key in tensors if key not in expected]
    for key in expected.keys() & tensors.keys():
        in_file, here = tuple(tensors[key].shape), tuple(expected[key].shape)
        if in_file != here:
            problems.append(f"tensor {key} has shape {in_file} in the file, {here} here")
    return sorted(problems)


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
) -> Adapter:
    """Attach a method's adapter with these tensors, or raise one error under `error_heading` and change nothing."""
    before = host.route
    adapter = host.attach(name, method, seed=seed, head=head, extra=extra)
    problems = mismatches(adapter, tensors)
    if problems:
        host.detach(name)
        host.use(before)
        raise_all(problems, error_heading)
    adapter.load_tensors(tensors)
    adapter.trained_rows = None  # the caller may know them
    return adapter
