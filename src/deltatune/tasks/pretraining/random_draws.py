"""Random draws from a given generator; the global random state is neither read nor changed."""

from __future__ import annotations

import torch


def uniform(generator: torch.Generator) -> float:
    """A uniform number in [0, 1)."""
    return float(torch.rand((), generator=generator, device=generator.device))


def uniforms(count: int, generator: torch.Generator) -> list[float]:
    """Uniform numbers in [0, 1)."""
    values: list[float] = torch.rand(count, generator=generator, device=generator.device).tolist()
    return values


def random_integer(low: int, high: int, generator: torch.Generator) -> int:
    """A uniform integer, low <= n <= high."""
    return int(torch.randint(low, high + 1, (), generator=generator, device=generator.device))


def permutation(count: int, generator: torch.Generator) -> list[int]:
    """0 to count - 1, shuffled."""
    values: list[int] = torch.randperm(count, generator=generator, device=generator.device).tolist()
    return values


def random_partition(total: int, count: int, generator: torch.Generator) -> list[int]:
    """`count` positive integers that sum to `total`, each such list equally likely; 1 <= count <= total."""
    cuts = sorted(1 + cut for cut in permutation(total - 1, generator)[: count - 1])
    return [end - start for start, end in zip([0, *cuts], [*cuts, total], strict=True)]
