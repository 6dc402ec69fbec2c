"""bitsandbytes' kernels for 4-bit weights, where the package is installed and they give the same bits faster."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

Kernel = Callable[[Tensor, Tensor, int, str, tuple[int, int], torch.dtype], Tensor]
"""(packed codes, magnitudes, block, scheme's name, shape, dtype) -> the matrix."""

OLDEST = (0, 50)
"""Version of bitsandbytes. On the CPU 0.46 has no kernel for FP4, and 0.47 and 0.48 return other bits in 16 bits."""


def four_bit_kernel(device: torch.device, shape: tuple[int, int], block: int, dtype: torch.dtype) -> Kernel | None:
    """The kernel that dequantises a matrix of this shape on a device; None where there is none of the same bits.

    The CPU kernel of bitsandbytes 0.50 takes wrong magnitudes where the columns are no whole number of blocks, and
    loses accuracy in blocks of 2,048 and more. One difference remains: where the processor rounds to bfloat16 itself
    (AVX512-BF16), values below 1.2e-38 become 0.
    """
    fits = shape[1] % block == 0 and block < 2048 and dtype in (torch.float32, torch.bfloat16, torch.float16)
    if not fits or device.type not in ("cpu", "cuda") or torch.compiler.is_compiling():
        return None
    return _kernel()


@cache
def _kernel() -> Kernel | None:
    logger = logging.getLogger("bitsandbytes")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it reports other packages that would make other kernels faster
    try:
        import bitsandbytes  # registers the operators

        if tuple(map(int, re.findall(r"\d+", bitsandbytes.__version__)[:2])) < OLDEST:
            return None
        operator = torch.ops.bitsandbytes.dequantize_4bit.default
    except Exception:  # not installed, or built for another machine
        return None
    finally:
        logger.setLevel(level)

    def dequantize(
        codes: Tensor, absmax: Tensor, block: int, name: str, shape: tuple[int, int], dtype: torch.dtype
    ) -> Tensor:
        matrix: Tensor = operator(codes, absmax, block, name, shape, dtype)
        return matrix

    return dequantize
