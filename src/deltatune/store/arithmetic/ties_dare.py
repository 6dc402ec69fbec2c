"""Merging changes of several adapters, tensor by tensor: TIES and DARE.

TIES: Yadav et al. 2023, https://arxiv.org/abs/2306.01708; DARE: Yu et al. 2024, https://arxiv.org/abs/2311.03099.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Scope = Literal["model", "tensor"]


def largest(change: Tensor, density: float) -> Tensor:
    """The change with all but its int(density · size) largest entries set to 0."""
    flat = change.flatten()
    kept = torch.topk(flat.abs(), int(density * flat.numel()), sorted=False).indices
    return torch.zeros_like(flat).index_copy_(0, kept, flat[kept]).view_as(change)


def dropped(change: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """The change with each entry kept with probability `density` and then divided by it, so that its mean stays."""
    kept = torch.empty(change.shape).bernoulli_(density, generator=generator)
    return change * kept.to(change) / density


def elected(changes: Sequence[Tensor], scope: Scope) -> Tensor:
    """The sign of each entry's sum, ±1. Where the sum is 0: `model` the sign most entries have, `tensor` +1."""
    signs = torch.stack(list(changes)).sum(0).sign()
    most = signs.sum().sign() if scope == "model" else signs.new_ones(())
    return torch.where(signs == 0, torch.where(most == 0, torch.ones_like(most), most), signs)


def agreeing_mean(changes: Sequence[Tensor], signs: Tensor) -> Tensor:
    """The mean of the entries that have the elected sign; 0 where none has it."""
    stack = torch.stack(list(changes))
    agree = stack.sign() == signs
    return (stack * agree).sum(0) / agree.sum(0).clamp(min=1)


def ties(changes: Sequence[Tensor], density: float, scope: Scope) -> Tensor:
    """Trim, elect, and take the mean of those that agree."""
    trimmed = [largest(change, density) for change in changes]
    return agreeing_mean(trimmed, elected(trimmed, scope))
