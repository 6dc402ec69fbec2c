"""Products with an input that several low-rank Deltas read: q, k and v of an attention share `x [A_q; A_k; A_v]ᵀ`.

Alone, each Delta reads x once for its product and once for the gradient of A, and writes a gradient of x's size that
must be accumulated. For r = 8 this memory traffic, not the arithmetic, dominates a training step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltatune.core.delta import SharedModule
from deltatune.core.sites.site import Site

_SAME_INPUT = ({"attn.q", "attn.k", "attn.v"}, {"cross.k", "cross.v"}, {"ffn.gate", "ffn.in"})


def input_of(site: Site) -> str:
    """The common name of sites with the same input: `layers.3.attn.k-q-v` for q, k and v of one attention."""
    block, _, role = site.name.rpartition(".")
    for roles in _SAME_INPUT:
        if f"{block.rpartition('.')[2]}.{role}" in roles:
            return f"{block}." + "-".join(sorted(name.rpartition(".")[2] for name in roles))
    return site.name


class SharedInput:
    """The product of all members, computed by the first one that a training step reaches; each takes its part once."""

    def __init__(self) -> None:
        self.members: list[Any] = []
        """The Deltas, each with an A and its `down()` (r, in); in a list, so that no module owns another."""
        self.x: Tensor | None = None
        self.versions: list[int] = []
        self.parts: dict[int, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "x": None, "parts": {}}  # intermediate values are neither copied nor saved

    def product(self, member: Any, x: Tensor) -> Tensor:
        """`x Aᵀ` (N, r) with one member's `down()` as A, for x (..., in), in x's precision."""
        if len(self.members) < 2 or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return F.linear(x.flatten(0, -2), member.down().to(x.dtype))
        versions = [other.A._version for other in self.members]
        if x is not self.x or versions != self.versions or id(member) not in self.parts:
            downs = [other.down() for other in self.members]
            whole = F.linear(x.flatten(0, -2), torch.cat(downs).to(x.dtype))  # (N, sum r)
            parts = torch.split(whole, [len(down) for down in downs], dim=-1)
            self.x, self.versions = x, versions
            self.parts = {id(other): part for other, part in zip(self.members, parts, strict=True)}
        part = self.parts.pop(id(member))
        if not self.parts:
            self.x = None
        return part


class SharedInputs(SharedModule):
    """The shared inputs of one adapter."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: dict[str, SharedInput] = {}

    def join(self, member: nn.Module, site: Site) -> SharedInput:
        """Enter a Delta with an A and `down()` at its site; returns the product of all with the same input."""
        # MobileBERT's v reads a wider input than its q and k
        shared = self.inputs.setdefault(f"{input_of(site)}/{site.width_in}", SharedInput())
        shared.members.append(member)
        return shared


def few_tokens(x: Tensor, A: Tensor) -> bool:
    """Whether, as in decoding, it is cheaper to cast x to the dtype of A and B than to cast them to that of x."""
    return x.dtype != A.dtype and x.numel() <= 32 * x.shape[-1]
