"""Peak memory of a stretch of work."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from pathlib import Path

import torch

PROCESS = Path("/proc/self")


def reset_peak(device: torch.device) -> None:
    """Start a new measurement. On Linux without a GPU, freed memory is given back first, so that runs compare."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library: the measurement is then a little too high
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        with suppress(OSError):  # not allowed in this container: peak() then gives the process's peak so far
            (PROCESS / "clear_refs").write_text("5")  # resets VmHWM (man 5 proc)


def peak(device: torch.device) -> int | None:
    """Bytes at the highest point since `reset_peak`: of the GPU, or of the whole process on Linux; None elsewhere."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if device.type == "cpu" and sys.platform == "linux":
        lines = (PROCESS / "status").read_text().splitlines()
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), None)
    return None
