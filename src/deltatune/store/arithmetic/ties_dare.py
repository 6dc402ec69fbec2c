"""TIES and DARE: merging the changes of several adapters tensor by tensor.

TIES: Yadav et al. 2023, https://arxiv.org/abs/2306.01708; DARE: Yu et al. 2024, https://arxiv.org/abs/2311.03099.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Scope = Literal["model", "tensor"]
"""Whether TIES trims and elects over the whole model or in each tensor."""


def trim(change: Tensor, density: float) -> Tensor:
    """Set all but the int(density · size) largest entries to 0."""
    flat = change.flatten()
    largest = torch.topk(flat.abs(), int(density * flat.numel()), sorted=False).indices
    return torch.zeros_like(flat).index_copy_(0, largest, flat[largest]).view_as(change)


def drop_and_rescale(change: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """Keep each entry with probability `density` and divide it by `density`, so that the mean stays."""
    mask = torch.empty(change.shape).bernoulli_(density, generator=generator)
    return change * mask.to(change) / density


def elect_signs(changes: Sequence[Tensor], scope: Scope) -> Tensor:
    """Return the sign of each entry's sum, ±1. For a sum of 0: `model` takes the majority sign, `tensor` +1."""
    signs = torch.stack(list(changes)).sum(0).sign()
    majority = signs.sum().sign() if scope == "model" else signs.new_ones(())
    return torch.where(signs == 0, torch.where(majority == 0, torch.ones_like(majority), majority), signs)


def disjoint_mean(changes: Sequence[Tensor], signs: Tensor) -> Tensor:
    """Return the mean of the entries that have the elected sign; 0 if none has it."""
    stack = torch.stack(list(changes))
    agree = stack.sign() == signs
    return (stack * agree).sum(0) / agree.sum(0).clamp(min=1)


def ties(changes: Sequence[Tensor], density: float, scope: Scope) -> Tensor:
    """Trim, elect signs, and take the disjoint mean."""
    trimmed = [trim(change, density) for change in changes]
    return disjoint_mean(trimmed, elect_signs(trimmed, scope))
