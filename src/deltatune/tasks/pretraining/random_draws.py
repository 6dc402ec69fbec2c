"""Random choices from a generator that is handed in: nothing here reads or moves the global random state."""

from __future__ import annotations

import torch


def fraction(generator: torch.Generator) -> float:
    """A uniform number in [0, 1)."""
    return float(torch.rand((), generator=generator, device=generator.device))


def fractions(count: int, generator: torch.Generator) -> list[float]:
    """Uniform numbers in [0, 1)."""
    found: list[float] = torch.rand(count, generator=generator, device=generator.device).tolist()
    return found


def integer(low: int, high: int, generator: torch.Generator) -> int:
    """A uniform integer, low <= n <= high."""
    return int(torch.randint(low, high + 1, (), generator=generator, device=generator.device))


def order(count: int, generator: torch.Generator) -> list[int]:
    """0 to count - 1, shuffled."""
    found: list[int] = torch.randperm(count, generator=generator, device=generator.device).tolist()
    return found


def parts(total: int, count: int, generator: torch.Generator) -> list[int]:
    """`count` positive integers that sum to `total`, each such list equally likely; 1 <= count <= total."""
    cuts = sorted(1 + place for place in order(total - 1, generator)[: count - 1])
    return [end - start for start, end in zip([0, *cuts], [*cuts, total], strict=True)]
