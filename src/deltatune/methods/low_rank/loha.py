"""LoHa: the element-wise product of two low-rank matrices beside a frozen one, of rank up to r²."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltatune.core.bank_delta import bucket
from deltatune.core.capabilities import Capabilities
from deltatune.core.delta import Delta, Rng
from deltatune.core.method import Method, View, at_least
from deltatune.core.sites.site import Site, Sites
from deltatune.methods.low_rank.low_rank_bank import LowRankBank, wide
from deltatune.methods.low_rank.shared_input import few_tokens
from deltatune.methods.low_rank.site_ranks import check_ranks, rank_at, ranked_sites, scaled_ranks


class HadamardBank(LowRankBank):
    """LoRA's stacks of the pairs (r² rows and columns); where the matrix has fewer of either, it and the identity."""

    @staticmethod
    def padded_rank(delta: Any) -> int:
        (r, width_in), width_out = delta.A1.shape, len(delta.B1)
        rank: int = min(bucket(r * r), width_in, width_out)
        return rank

    def write_(self, slot: int, delta: Any, tensors: Mapping[str, Tensor]) -> None:
        A1, A2, B1, B2 = (wide(tensors[name]) for name in ("A1", "A2", "B1", "B2"))
        if len(A1) ** 2 <= self.rank:
            A, B = pairs(A1, A2, B1, B2)
        else:
            matrix, eye = (B1 @ A1) * (B2 @ A2), torch.eye(self.rank, device=A1.device)
            A, B = (eye, matrix) if self.rank == A1.shape[1] else (matrix, eye)
        self.write_factors_(slot, A, delta.scale * B)


def pairs(A1: Tensor, A2: Tensor, B1: Tensor, B2: Tensor) -> tuple[Tensor, Tensor]:
    """A (r², in) and B (out, r²) with B A = (B₁ A₁) ⊙ (B₂ A₂)."""
    A = (A1.unsqueeze(1) * A2).flatten(0, 1)
    B = (B1.unsqueeze(2) * B2.unsqueeze(1)).flatten(1)
    return A, B


class HadamardProduct(Delta):
    """`Δ = s·((B₁ A₁) ⊙ (B₂ A₂)) x`, A₁ and A₂ (r, in), B₁ and B₂ (out, r).

    The product is B A with A (r², in) and B (out, r²), the products of all pairs of rows and of columns. Where these
    have fewer elements than the matrix (out, in), the matrix is not made.
    """

    capabilities = Capabilities(merges=True)
    bank_form = HadamardBank

    def __init__(self, width_in: int, width_out: int, r: int, scale: float) -> None:
        super().__init__()
        self.A1, self.A2 = nn.Parameter(torch.empty(r, width_in)), nn.Parameter(torch.empty(r, width_in))
        self.B1, self.B2 = nn.Parameter(torch.empty(width_out, r)), nn.Parameter(torch.empty(width_out, r))
        self.scale = scale

    def init_(self, rng: Rng, base: nn.Module) -> None:
        for name in ("A1", "B1", "B2"):
            nn.init.kaiming_uniform_(self.get_parameter(name), a=math.sqrt(5), generator=rng(name))
        nn.init.zeros_(self.A2)

    def matrix(self) -> Tensor:
        """ΔW / s, (out, in)."""
        return (self.B1 @ self.A1) * (self.B2 @ self.A2)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        (r, width_in), width_out = self.A1.shape, len(self.B1)
        dtype = self.A1.dtype if few_tokens(x, self.A1) else x.dtype
        if r * r * (width_in + width_out) > width_in * width_out:
            change = F.linear(x.to(dtype), self.matrix().to(dtype))
        else:
            A, B = pairs(self.A1, self.A2, self.B1, self.B2)
            change = F.linear(F.linear(x.to(dtype), A.to(dtype)), B.to(dtype))
        return change.mul(self.scale).to(h.dtype)

    def low_rank_factors(self) -> tuple[Tensor, Tensor, float]:
        A, B = pairs(self.A1, self.A2, self.B1, self.B2)
        return A.detach(), B.detach(), self.scale

    def merge(self, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
        weight = base["weight"]
        change = (self.B1.double() @ self.A1.double()) * (self.B2.double() @ self.A2.double())
        return {"weight": (weight.double() + self.scale * change).to(weight.dtype)}


@dataclass(frozen=True)
class LoHa(Method):
    """h ← h + (α/r)·((B₁ A₁) ⊙ (B₂ A₂)) x

    Hyeon-Woo et al. 2021, https://arxiv.org/abs/2108.06098 (FedPara); as an adapter by LyCORIS, Yeh et al. 2023,
    https://arxiv.org/abs/2309.14859. With twice LoRA's parameters at the same r, the update has rank up to r².
    """

    r: int = 8
    """Rank of each of the two factors."""
    alpha: float = 8.0
    """The update is multiplied by alpha / r."""
    sites: str | tuple[str, ...] = "*.attn.{q,v}"
    """Which matrices; any linear map."""
    ranks: tuple[tuple[str, int], ...] = ()
    """Other ranks for some of the sites, `(("*.ffn.*", 4),)`: the first glob that matches counts. Alpha is the same."""

    size_field: ClassVar[str | None] = "r"
    learning_rate: ClassVar[float] = 2e-2
    view: ClassVar[View] = View("((B₁ A₁) ⊙ (B₂ A₂)) x", "parallel", "output of each chosen matrix", "scaled")

    def check(self) -> None:
        at_least(self, r=1)
        check_ranks(self)

    def pick(self, sites: Sites) -> list[Site]:
        return ranked_sites(self, sites, ("linear",))

    def build(self, site: Site) -> Delta:
        r = rank_at(self, site)
        return HadamardProduct(site.width_in, site.width_out, r, self.alpha / r)

    def cost(self, site: Site) -> int:
        return 2 * rank_at(self, site) * (site.width_in + site.width_out)

    def limit(self, sites: Sites) -> int:
        return max(
            math.ceil(min(site.width_in, site.width_out) * self.r / rank_at(self, site)) for site in self.pick(sites)
        )

    def sized(self, size: int) -> Method:
        """The same with r = size; the ranks of single sites keep their proportion to r, each at least 1."""
        return dataclasses.replace(self, r=size, ranks=scaled_ranks(self, size))
