"""LoRA: a low-rank update beside a frozen matrix."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltatune.core.delta import Delta, Rng
from deltatune.core.method import Method, View, at_least
from deltatune.core.sharing import SharedInput, SharedInputs
from deltatune.core.sites import Site, Sites


def few_tokens(x: Tensor, A: Tensor) -> bool:
    """Whether, as in decoding, it is cheaper to convert x to the precision of A and B than they to that of x."""
    return x.dtype != A.dtype and x.numel() <= 32 * x.shape[-1]


class LowRank(Delta):
    """`Δ = s · B A dropout(x)`, A (r, in), B (out, r)."""

    folds = True

    def __init__(self, width_in: int, width_out: int, r: int, scale: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(r, width_in))
        self.B = nn.Parameter(torch.empty(width_out, r))
        self.scale = scale
        self.dropout = dropout
        self.input = SharedInput()

    def init_(self, rng: Rng, base: nn.Module) -> None:
        # The paper says Gaussian; its code and PEFT draw U(±1/√in). B = 0 makes the start the base itself.
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5), generator=rng("A"))
        nn.init.zeros_(self.B)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        A, B = self.A, self.B
        if self.dropout:
            x = F.dropout(x, self.dropout, self.training)
        if few_tokens(x, A):
            return F.linear(F.linear(x.to(A.dtype), A), B).mul(self.scale).to(h.dtype)
        low = F.linear(x, A.to(x.dtype))  # (..., r)
        return F.linear(low, B.to(x.dtype)).mul(self.scale).to(h.dtype)

    def add(self, h: Tensor, x: Tensor, weight: float | Tensor = 1.0) -> Tensor:
        if isinstance(weight, Tensor) or torch.is_autocast_enabled(x.device.type):
            return super().add(h, x, weight)
        A, B = self.A, self.B
        if self.dropout:
            x = F.dropout(x, self.dropout, self.training)
        if few_tokens(x, A):
            return torch.add(h, F.linear(F.linear(x.to(A.dtype), A), B), alpha=weight * self.scale).to(h.dtype)
        low = self.input.product(self, x)  # (N, r)
        flat = torch.addmm(h.flatten(0, -2).to(x.dtype), low, B.to(x.dtype).T, alpha=weight * self.scale)
        return flat.view_as(h).to(h.dtype)

    def fold(self, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
        weight = base["weight"]
        change = self.scale * (self.B.double() @ self.A.double())
        return {"weight": (weight.double() + change).to(weight.dtype)}


@dataclass(frozen=True)
class LoRA(Method):
    """h ← h + (α/r)·B A x

    Hu et al. 2021, https://arxiv.org/abs/2106.09685
    """

    r: int = 8
    """Rank."""
    alpha: float = 16.0
    """The update is multiplied by alpha / r."""
    dropout: float = 0.0
    """Dropout on the branch's input only; the base path never sees it."""
    sites: str | tuple[str, ...] = "*.attn.{q,v}"
    """Which matrices; any linear map: `*.attn.{q,k,v,o}`, `*.ffn.{in,out}`."""

    size_field: ClassVar[str | None] = "r"
    learning_rate: ClassVar[float] = 2e-3
    view: ClassVar[View] = View("B A x", "parallel", "output of each chosen matrix", "scaled")

    def check(self) -> None:
        at_least(self, r=1, dropout=0)

    def pick(self, sites: Sites) -> list[Site]:
        return sites.match(self.sites, kinds=("linear",))

    def build(self, site: Site) -> Delta:
        return LowRank(site.width_in, site.width_out, self.r, self.alpha / self.r, self.dropout)

    def share(self, picked: Sequence[Site]) -> nn.Module | None:
        return None if self.dropout else SharedInputs()  # each branch has a dropout of its own

    def connect(self, delta: Delta, site: Site, shared: nn.Module) -> None:
        assert isinstance(delta, LowRank)
        assert isinstance(shared, SharedInputs)
        delta.input = shared.join(delta, site)

    def cost(self, site: Site) -> int:
        return self.r * (site.width_in + site.width_out)

    def limit(self, sites: Sites) -> int:
        return max(min(site.width_in, site.width_out) for site in self.pick(sites))
