"""Memory: what a method's tensors take, counted before any is made, and what the machine has."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import torch

from deltatune.core.errors import DeltatuneError
from deltatune.core.method import Method
from deltatune.core.sites.site import Sites

LARGE = 4096
"""Methods without an integer of this size are not counted: their tensors are no larger than the base's own."""
FLOAT32 = 4
"""Bytes of an adapter's parameter."""
_CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")


def check_memory(method: Method, sites: Sites, device: torch.device) -> None:
    """Raise DeltatuneError for a method whose tensors do not fit into the memory of a device.

    Counted from shapes alone, so it takes no memory itself. The error names the field that is absurd, the bytes that
    it would take, the memory there is and the largest useful value.
    """
    if device.type == "meta":  # holds no values
        return
    memory = memory_of(device)
    for part in method.parts:
        if _largest(part) is None:
            continue
        needed = tensor_bytes(part, sites)
        if needed is not None and needed > memory:
            raise DeltatuneError(_message(part, sites, needed, device, memory))


def check_parameters(what: str, count: float) -> None:
    """Raise DeltatuneError for a number of parameters that fits into no memory of this machine."""
    memory = max(memory_of(torch.device(name)) for name in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])))
    if not count * FLOAT32 <= memory:
        size = f"{count:,.0f} parameters, {in_bytes(count * FLOAT32)} in float32"
        size = size if count < 1e18 else "more than 10^18 parameters"
        raise DeltatuneError(f"{what} is {size}; this machine has {in_bytes(memory)} of memory")


def memory_of(device: torch.device) -> int:
    """Bytes of a device's memory: of a GPU all of it, of the CPU what this process may use at most."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    limits = [2**62]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for path in map(Path, _CGROUPS):
        text = path.read_text().strip() if path.is_file() else ""
        limits += [int(text)] if text.isdecimal() else []
    try:
        import resource  # Windows has none
    except ImportError:
        return min(limits)
    soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    return min([*limits, soft] if soft >= 0 else limits)


def tensor_bytes(part: Method, sites: Sites) -> int | None:
    """Bytes of a single method's parameters and buffers in float32; None where they are not known from shapes.

    The Deltas are built on torch's `meta` device, which keeps shapes and no values. This counts what `Method.count`
    leaves out: frozen projections, and reparametrisations that are used in training alone.
    """
    try:
        with torch.device("meta"):
            picked = part.pick(sites)
            shared = part.share(picked)
            modules = [part.build(site) for site in picked]
        owners = [*modules, *([] if shared is None else [shared])]
        owned = {id(tensor): tensor for owner in owners for tensor in (*owner.parameters(), *owner.buffers())}
        # copies of the base's own tensors (norms) are made later, and only the closed form has them
        return max(sum(tensor.numel() for tensor in owned.values()) * FLOAT32, _closed_form(part, sites) or 0)
    except DeltatuneError:
        raise
    except (RuntimeError, OverflowError) as error:  # more bytes than 64 bits can count
        return 2**63 if "overflow" in str(error).lower() else _closed_form(part, sites)
    except Exception:  # a method of another package that reads values while it is built
        return _closed_form(part, sites)


def _closed_form(part: Method, sites: Sites) -> int | None:
    try:
        return part.count(sites) * FLOAT32
    except (NotImplementedError, RuntimeError, OverflowError):
        return None


def _largest(config: Any) -> tuple[str, int] | None:
    """Name and value of the largest integer of a method, those of methods within it included, if it is large."""
    numbers = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, Method):
            numbers += [found for part in value.parts if (found := _largest(part))]
        elif type(value) is int and value >= LARGE:
            numbers.append((field.name, value))
    return max(numbers, key=lambda number: number[1], default=None)


def _message(part: Method, sites: Sites, needed: int, device: torch.device, memory: int) -> str:
    name, value = _largest(part) or ("", 0)
    amount = in_bytes(needed) if needed < 2**63 else f"more than {in_bytes(2**63)}"
    place = "the GPU" if device.type == "cuda" else "this machine"
    limit = part.limit(sites) if name == part.size_field else 2**20
    useful = f"; {name} is useful up to {limit:,} on this model" if limit < 2**20 else f"; choose a smaller {name}"
    return f"{part!r}: {name}={value:,} makes tensors of {amount}, but {place} has {in_bytes(memory)} of memory{useful}"


def in_bytes(count: float) -> str:
    """A number of bytes for readers: `73.7 TB`."""
    for unit in _UNITS[:-1]:
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} {_UNITS[-1]}"
