"""The hardware a model runs on: its device, whether bfloat16 pays there, and peak memory."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from deltatune.core.errors import DeltatuneError
from deltatune.core.quantization.stored_weights import stored_weight

PROCESS = Path("/proc/self")
"""Where Linux tells about the running process."""


def best_device() -> torch.device:
    """The GPU if there is one, else the CPU. Under torchrun each process gets the GPU of its LOCAL_RANK."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if "LOCAL_RANK" in os.environ else torch.device("cuda")


def uses_bfloat16(model: nn.Module, precision: str) -> bool:
    """Whether the base runs under bfloat16 autocast. Only a float32 base does; other bases keep their own dtype.

    precision: "float32", "bfloat16", or "auto", which decides by `native_bfloat16`.
    """
    first = next(parameter for parameter in model.parameters() if parameter.is_floating_point())
    if first.dtype != torch.float32 or precision == "float32":
        return False
    stored = (stored_weight(module) for module in model.modules())
    stuck = next((weight.label for weight in stored if weight is not None and not weight.autocasts), None)
    if stuck and precision == "bfloat16":
        raise DeltatuneError(
            f"weights stored in {stuck} do not train under bfloat16 autocast; use precision float32, or auto"
        )
    if stuck:
        return False
    return precision == "bfloat16" or native_bfloat16(first.device)


def native_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 matrix products are faster than float32 ones on a device.

    Measured on MiniLM, 32 rows of 40 tokens, a training step against float32: 0.59 with AMX tiles, but 1.2 with
    AVX512-BF16 alone and 2.7 without either. So on CPUs AMX decides.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        supports_amx = getattr(torch.cpu, "_is_amx_tile_supported", None)
        return bool(supports_amx and supports_amx())
    return False


LARGE_BLOCK = 1 << 20
"""Bytes from which on an allocation gets pages of its own, which go back to the system when it is freed."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt."""


def return_freed_memory_() -> None:
    """From now on this process gives the memory of freed tensors back to the system at once (glibc; elsewhere nothing).

    glibc raises its threshold to 32 MB while a program runs and keeps freed tensors in a heap with holes, so that a
    training step took 1.3 to 1.6 times the memory of its tensors; so it takes that of its tensors. That costs time: a
    step on two threads took about 1.4 times as long. Does nothing where the environment sets MALLOC_MMAP_THRESHOLD_ or
    GLIBC_TUNABLES.
    """
    if sys.platform != "linux" or {"MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"} & set(os.environ):
        return
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)
        libc.mallopt(M_TRIM_THRESHOLD, 4 * LARGE_BLOCK)


def reset_peak_memory(device: torch.device) -> None:
    """Start a new measurement. On Linux without a GPU freed memory is returned first, so that runs can be compared."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library: the measurement is then a little too high
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        with suppress(OSError):  # not allowed in this container: peak_memory then gives the process's peak so far
            (PROCESS / "clear_refs").write_text("5")  # resets VmHWM (man 5 proc)


def peak_memory(device: torch.device) -> int | None:
    """Peak bytes since `reset_peak_memory`: of the GPU, or of the whole process on Linux; None elsewhere."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if device.type == "cpu" and sys.platform == "linux":
        lines = (PROCESS / "status").read_text().splitlines()
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), None)
    return None
