"""Cutting the parts of a fused projection out of its output, and putting them back."""

from __future__ import annotations

import torch
from torch import Tensor

from deltatune.core.sites import Slice


def take(h: Tensor, cut: Slice | None) -> Tensor:
    """The part of (..., width) that a slice names."""
    if cut is None:
        return h
    if cut.groups == 1:
        return h[..., cut.start : cut.start + cut.width]
    return _split(h, cut.groups)[..., cut.start : cut.start + cut.width].flatten(-2)


def put(h: Tensor, cut: Slice | None, part: Tensor) -> Tensor:
    """A copy of (..., width) with the part that a slice names replaced."""
    if cut is None:
        return part
    whole = _split(h, cut.groups)
    return torch.slice_scatter(
        whole, _split(part, cut.groups).to(h.dtype), -1, cut.start, cut.start + cut.width
    ).flatten(-2)


def _split(h: Tensor, groups: int) -> Tensor:
    return h.reshape(*h.shape[:-1], groups, -1)
