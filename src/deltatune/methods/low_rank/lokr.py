"""LoKr: a Kronecker product of a small matrix and a low-rank one beside a frozen matrix."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from deltatune.core.bank_delta import BankDelta
from deltatune.core.capabilities import Capabilities
from deltatune.core.delta import Delta, Rng
from deltatune.core.errors import DeltatuneError
from deltatune.core.method import Method, View, at_least
from deltatune.core.sites.site import Site, Sites
from deltatune.methods.low_rank.low_rank_bank import wide
from deltatune.methods.low_rank.shared_input import few_tokens
from deltatune.methods.low_rank.site_ranks import check_ranks, rank_at, ranked_sites, scaled_ranks

ZeroFactor = Literal["first", "second"]
"""Which factor of the Kronecker product is zero at the start."""


class Factor(nn.Module):
    """A matrix (out, in): whole, or B A with A (r, in) and B (out, r) where that has fewer parameters."""

    def __init__(self, width_out: int, width_in: int, r: int | None) -> None:
        super().__init__()
        self.A: nn.Parameter | None = None
        self.B: nn.Parameter | None = None
        self.W: nn.Parameter | None = None
        if r is not None and factored(width_out, width_in, r):
            self.A, self.B = nn.Parameter(torch.empty(r, width_in)), nn.Parameter(torch.empty(width_out, r))
        else:
            self.W = nn.Parameter(torch.empty(width_out, width_in))

    def init_(self, rng: Rng, zero: Literal["", "A", "B"]) -> None:
        """Uniform in ±1/√in of each matrix; with `zero`, that factor of it or the whole is zero."""
        for name, parameter in self.named_parameters():
            if zero and name in (zero, "W"):
                nn.init.zeros_(parameter)
            else:
                nn.init.kaiming_uniform_(parameter, a=math.sqrt(5), generator=rng(name))

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        first, last = (self.W, self.W) if self.W is not None else (self.B, self.A)
        assert first is not None
        assert last is not None
        return len(first), last.shape[1]

    def forward(self) -> Tensor:
        """The matrix (out, in)."""
        if self.W is not None:
            return self.W
        assert self.A is not None
        assert self.B is not None
        return self.B @ self.A


def factored(width_out: int, width_in: int, r: int) -> bool:
    """Whether a matrix as a product of rank r has fewer parameters than the whole one."""
    return r * (width_out + width_in) < width_out * width_in


def split(width: int, factor: int) -> tuple[int, int]:
    """Two factors of a width: `factor` and the rest if it divides; otherwise those nearest to each other, the first
    the smaller one and at most `factor`; -1 for any."""
    if factor > 0 and width % factor == 0:
        return factor, width // factor
    most = math.isqrt(width) if factor < 0 else min(factor, math.isqrt(width))
    first = max(divisor for divisor in range(1, most + 1) if width % divisor == 0)
    return first, width // first


class LoKrBank(BankDelta):
    """Stacks s·W₁ (S, l, m) and W₂ᵀ (S, n, k), each factor multiplied out."""

    def __init__(self, delta: Any, site: Site, capacity: int, dtype: torch.dtype) -> None:
        super().__init__(delta, site, capacity, dtype)
        (self.l, self.m), (self.k, self.n) = self.shape(delta, site)
        self.add_stack("first", self.l, self.m)
        self.add_stack("second", self.n, self.k)

    @classmethod
    def shape(cls, delta: Any, site: Site) -> tuple[tuple[int, int], tuple[int, int]]:
        return delta.first.shape, delta.second.shape

    def write_(self, slot: int, delta: Any, tensors: Mapping[str, Tensor]) -> None:
        first, second = (whole({key: wide(tensor) for key, tensor in tensors.items()}, f"{name}.") for name in FACTORS)
        self.write_stack_("first", slot, delta.scale * first)
        self.write_stack_("second", slot, second.T)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        one = x.numel() == len(self.rows.slots) * x.shape[-1]
        W1, W2 = self.of_rows("first", keep=one), self.of_rows("second", keep=one)
        B = len(W1)  # 1 where all rows have the same slot
        low = torch.bmm(x.to(W2.dtype).reshape(B, -1, self.n), W2).view(B, -1, self.m, self.k)  # (B, T, m, k)
        T = low.shape[1]
        change = torch.bmm(W1, low.transpose(1, 2).reshape(B, self.m, T * self.k)).view(B, self.l, T, self.k)
        return change.transpose(1, 2).reshape(h.shape).to(h.dtype)


FACTORS = ("first", "second")


def whole(tensors: Mapping[str, Tensor], prefix: str) -> Tensor:
    """The matrix of a factor whose tensors have names with this prefix."""
    if f"{prefix}W" in tensors:
        return tensors[f"{prefix}W"]
    return tensors[f"{prefix}B"] @ tensors[f"{prefix}A"]


class KroneckerProduct(Delta):
    """`Δ = s·(W₁ ⊗ W₂) x`, W₁ (l, m), W₂ (k, n), out = l·k, in = m·n; computed as W₁ X W₂ᵀ, X = x as (m, n)."""

    capabilities = Capabilities(merges=True)
    bank_form = LoKrBank

    def __init__(self, first: Factor, second: Factor, scale: float, init: ZeroFactor) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.scale, self.init = scale, init

    def init_(self, rng: Rng, base: nn.Module) -> None:
        self.first.init_(lambda name: rng(f"first.{name}"), "B" if self.init == "first" else "")
        self.second.init_(lambda name: rng(f"second.{name}"), "A" if self.init == "second" else "")

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        W1, W2 = self.first(), self.second()
        dtype = W1.dtype if few_tokens(x, W1) else x.dtype
        X = x.to(dtype).reshape(*x.shape[:-1], W1.shape[1], W2.shape[1])  # (..., m, n)
        out: Tensor = W1.to(dtype) @ (X @ W2.to(dtype).T)  # (..., l, k)
        return out.flatten(-2).mul(self.scale).to(h.dtype)

    def merge(self, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
        weight = base["weight"]
        change = torch.kron(self.first().double(), self.second().double().contiguous())
        return {"weight": (weight.double() + self.scale * change).to(weight.dtype)}


@dataclass(frozen=True)
class LoKr(Method):
    """h ← h + (α/r)·(W₁ ⊗ W₂) x, W₂ = B A of rank r, or whole where that is smaller

    Edalati et al. 2022, https://arxiv.org/abs/2212.10650 (KronA); with a low-rank W₂ by LyCORIS, Yeh et al. 2023,
    https://arxiv.org/abs/2309.14859. The rank of the update is the product of the factors' ranks.
    """

    r: int = 8
    """Rank of the second factor; from in·out/(in + out) of its widths it is whole, and r only divides alpha."""
    alpha: float = 8.0
    """The update is multiplied by alpha / r."""
    factor: int = -1
    """Rows and columns of the first factor; where it does not divide a width, the largest divisor below it and the
    width's root. -1: the divisor next to the root, so that the factors are about equally large."""
    decompose: Literal["second", "both"] = "second"
    """Which of the two factors are products of rank r."""
    init: ZeroFactor = "first"
    """Which factor is zero at the start: the first as in PEFT, the second as in LyCORIS."""
    sites: str | tuple[str, ...] = "*.attn.{q,v}"
    """Which matrices; any linear map."""
    ranks: tuple[tuple[str, int], ...] = ()
    """Other ranks for some of the sites, `(("*.ffn.*", 4),)`: the first glob that matches counts. Alpha is the same."""

    size_field: ClassVar[str | None] = "r"
    learning_rate: ClassVar[float] = 2e-2
    view: ClassVar[View] = View("(W₁ ⊗ B A) x", "parallel", "output of each chosen matrix", "scaled")

    def check(self) -> None:
        at_least(self, r=1)
        check_ranks(self)
        if self.factor < 1 and self.factor != -1:
            raise DeltatuneError(
                f"LoKr(factor={self.factor}): factor must be at least 1, or -1 for the nearest factors"
            )

    def pick(self, sites: Sites) -> list[Site]:
        return ranked_sites(self, sites, ("linear",))

    def shapes(self, site: Site) -> tuple[tuple[int, int], tuple[int, int]]:
        """(l, m) and (k, n) of the two factors at one site."""
        (first_out, second_out), (first_in, second_in) = (
            split(width, self.factor) for width in (site.width_out, site.width_in)
        )
        return (first_out, first_in), (second_out, second_in)

    def build(self, site: Site) -> Delta:
        r = rank_at(self, site)
        first, second = self.shapes(site)
        return KroneckerProduct(
            Factor(*first, r if self.decompose == "both" else None), Factor(*second, r), self.alpha / r, self.init
        )

    def cost(self, site: Site) -> int:
        r = rank_at(self, site)
        first, second = (r * sum(shape) if factored(*shape, r) else math.prod(shape) for shape in self.shapes(site))
        return (first if self.decompose == "both" else math.prod(self.shapes(site)[0])) + second

    def limit(self, sites: Sites) -> int:
        # From here on every factor is whole.
        return max(
            math.ceil(math.prod(shape) / sum(shape) * self.r / rank_at(self, site))
            for site in self.pick(sites)
            for shape in self.shapes(site)
        )

    def sized(self, size: int) -> Method:
        """The same with r = size; the ranks of single sites keep their proportion to r, each at least 1."""
        return dataclasses.replace(self, r=size, ranks=scaled_ranks(self, size))
