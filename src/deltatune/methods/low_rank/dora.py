"""DoRA: a weight's rows as magnitude times direction; LoRA turns the direction, a vector sets the magnitude."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltatune.core.capabilities import Capabilities
from deltatune.core.delta import Delta, Rng
from deltatune.core.method import View
from deltatune.core.sites.site import Kind, Site
from deltatune.methods.low_rank.lora import Init, LoRA, LowRank
from deltatune.methods.low_rank.low_rank_bank import LowRankBank, wide
from deltatune.methods.low_rank.shared_input import few_tokens


class DoRABank(LowRankBank):
    """LoRA's stacks with m/n in B, and the stack m/n − 1 (S, out); n is computed when a slot is written."""

    reads_base = True

    def __init__(self, delta: Any, site: Site, capacity: int, dtype: torch.dtype) -> None:
        super().__init__(delta, site, capacity, dtype)
        self.base = delta.base
        self.add_stack("excess", site.width_out)
        self.squares: tuple[tuple[object, ...], Tensor] = (), torch.empty(0)
        """The state of the base's weight, and ‖W‖² of its rows."""

    def write_(self, slot: int, delta: Any, tensors: Mapping[str, Tensor]) -> None:
        W, state = self.base.weight, self.base.state
        if self.squares[0] != state:
            self.squares = state, row_squares(W)
        A, B, m = (wide(tensors[name]).to(W.device) for name in ("A", "B", "m"))
        ratio = m / row_norms(W, self.squares[1], A, B, delta.scale)
        self.write_factors_(slot, A, (delta.scale * ratio).unsqueeze(1) * B)
        self.write_stack_("excess", slot, ratio - 1)  # rounded as a difference from 1

    def changed(self, onto: Tensor | None, x: Tensor, h: Tensor, weight: float | Tensor) -> Tensor:
        bias, excess = self.base.bias, self.vectors("excess", h) * weight
        turned = super().changed(None, x, h, weight)
        change = turned + excess.to(h.dtype) * (h if bias is None else h - bias)
        return change.to(h.dtype) if onto is None else (onto + change).to(h.dtype)


class DoRADelta(LowRank):
    """`Δ = (m/n − 1) ⊙ (h − bias) + (m/n) ⊙ s B A x`, m (out,), n (out,) the norms of the rows of W + s B A.

    n comes from `n² = ‖W‖² + 2s Σ (W Aᵀ) ⊙ B + s² Σ (B A Aᵀ) ⊙ B`, sums over the rank: no matrix of W's size is made.
    Beside a base in bfloat16 only W Aᵀ is computed in it; n was then off by less than 1e-4 of itself.
    """

    bank_form = DoRABank
    square: Tensor
    """‖W‖² of each row, in float32; computed from the base, not saved."""

    def __init__(
        self, width_in: int, width_out: int, r: int, scale: float, dropout: float, exact: bool, init: Init = "kaiming"
    ) -> None:
        super().__init__(width_in, width_out, r, scale, dropout, init)
        self.m = nn.Parameter(torch.empty(width_out))
        self.register_buffer("square", torch.empty(width_out), persistent=False)
        self.capabilities = Capabilities(merges=True, exact=exact)
        self.cached: tuple[tuple[object, ...], Tensor] | None = None
        """At inference: the versions of the tensors of n, and n."""

    @torch.no_grad()
    def init_(self, rng: Rng, base: nn.Module) -> None:
        super().init_(rng, base)
        self.square = row_squares(self.base.weight)
        self.m = nn.Parameter(self.square.sqrt())

    def norm(self) -> Tensor:
        """n (out,), a constant in the backward pass unless `exact`."""
        with torch.set_grad_enabled(self.capabilities.exact and torch.is_grad_enabled()):
            return row_norms(self.base.weight, self.square, self.A, self.B, self.scale)

    def ratio(self) -> Tensor:
        """m/n (out,)."""
        A, B = self.A, self.B
        inference = not (self.training or torch.is_grad_enabled() or torch.compiler.is_compiling() or A.is_inference())
        if not inference:
            return self.m / self.norm()
        state = tuple((t._version, t.data_ptr(), t.dtype) for t in (A, B)) + self.base.state
        if self.cached is None or self.cached[0] != state:
            self.cached = state, self.norm()  # per token, computing n costs r times as much as the map itself
        return self.m / self.cached[1]

    def train(self, mode: bool = True) -> DoRADelta:
        self.cached = None
        return super().train(mode)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        ratio, bias = self.ratio(), self.base.bias
        change = super().forward(x, h)
        plain = h if bias is None else h - bias
        return (ratio - 1).to(h.dtype) * plain + ratio.to(h.dtype) * change

    def add(self, h: Tensor, x: Tensor, weight: float | Tensor = 1.0) -> Tensor:
        if isinstance(weight, Tensor) or torch.is_autocast_enabled(x.device.type) or few_tokens(x, self.A):
            return super(LowRank, self).add(h, x, weight)
        x = F.dropout(x, self.dropout, self.training) if self.dropout else x
        ratio, bias = self.ratio(), self.base.bias
        excess = weight * (ratio - 1)  # (out,); rounded as a difference from 1, so that bfloat16 keeps small ones
        up = (weight * self.scale * ratio).unsqueeze(1) * self.B  # (out, r)
        low = self.input.product(self, x)  # (N, r)
        if bias is not None:  # −(m/n − 1) ⊙ bias as one more column: cheaper than a pass over h
            low = F.pad(low, (0, 1), value=1.0)
            up = torch.cat([up, (-excess * bias).unsqueeze(1)], dim=1)
        flat = h.flatten(0, -2).to(x.dtype)
        flat = torch.addcmul(flat, flat, excess.to(x.dtype)).addmm_(low, up.to(x.dtype).T)
        return flat.view_as(h).to(h.dtype)

    def merge(self, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
        weight = base["weight"]
        whole = weight.double() + self.scale * (self.B.double() @ self.A.double())
        norm = torch.linalg.vector_norm(whole, dim=1).clamp_min(torch.finfo(torch.float64).tiny)
        return {"weight": ((self.m.double() / norm).unsqueeze(1) * whole).to(weight.dtype)}


def row_squares(W: Tensor) -> Tensor:
    """‖W‖² of each row, in float32 or wider."""
    dtype = torch.promote_types(W.dtype, torch.float32)
    norms: Tensor = torch.linalg.vector_norm(W, dim=1, dtype=dtype)
    return norms.square()


def row_norms(W: Tensor, square: Tensor, A: Tensor, B: Tensor, s: float) -> Tensor:
    """The norms (out,) of the rows of W + s B A; `square` are those of W, squared."""
    with torch.autocast(W.device.type, enabled=False):
        product = F.linear(A.to(W.dtype), W).T  # W Aᵀ (out, r)
        change = 2 * s * product + s * s * (B @ (A @ A.T))
        squared = square + (change * B).sum(1)
        # A row of zeros has no direction; a tiny norm instead of 0 keeps it zero.
        norms: Tensor = squared.clamp_min(torch.finfo(squared.dtype).tiny).sqrt()
        return norms


@dataclass(frozen=True)
class DoRA(LoRA):
    """h ← bias + m ⊙ (W + s·B A) x / ‖W + s·B A‖, a norm for each row, s = α/r

    Liu et al. 2024, https://arxiv.org/abs/2402.09353. Dropout acts on x before A only; PEFT's also on the x of the
    term (m/‖·‖ − 1) W x.
    """

    norm: Literal["detached", "exact"] = "detached"
    """Whether the norm is a constant in the backward pass, as in section 4.3 and PEFT, or differentiated."""

    kinds: ClassVar[tuple[Kind, ...]] = ("linear",)
    view: ClassVar[View] = View(
        "(m/n − 1)(h − bias) + (m/n) B A x", "parallel", "output of each chosen matrix", "scaled"
    )

    @property
    def learning_rate(self) -> float:  # type: ignore[override]
        """Somewhat below LoRA's, as its authors advise."""
        return 1e-3 / math.sqrt(self.ratio)

    def build(self, site: Site) -> Delta:
        r = self.rank(site)
        return self.with_rates(
            DoRADelta(site.width_in, site.width_out, r, self.scale(r), self.dropout, self.norm == "exact", self.init)
        )

    def cost(self, site: Site) -> int:
        return super().cost(site) + site.width_out
