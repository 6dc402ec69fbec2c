"""BOFT: OFT whose rotation is a product of sparse ones, as in a fast Fourier transform, and a scale for each output."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltatune.core.bank_delta import BankDelta
from deltatune.core.capabilities import Capabilities
from deltatune.core.delta import Delta, Rng
from deltatune.core.errors import raise_all
from deltatune.core.method import Method, View, at_least
from deltatune.core.sites.site import Site, Sites
from deltatune.methods.orthogonal.oft import cayley_change, nearest_divisor, rotated


class ButterflyBank(BankDelta):
    """Stacks of the factors D − I (S, factors, blocks, n, n), and s − 1 (S, out)."""

    def __init__(self, delta: Any, site: Site, capacity: int, dtype: torch.dtype) -> None:
        super().__init__(delta, site, capacity, dtype)
        self.base = delta.base
        self.add_stack("turns", *delta.R.shape)
        self.add_stack("excess", len(delta.s))

    @classmethod
    def shape(cls, delta: Any, site: Site) -> Hashable:
        return tuple(delta.R.shape)

    def write_(self, slot: int, delta: Any, tensors: Mapping[str, Tensor]) -> None:
        self.write_stack_("turns", slot, turns(tensors["R"].double()))
        self.write_stack_("excess", slot, tensors["s"].double() - 1)  # rounded as a difference from 1

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        each = self.of_rows("turns", keep=x.numel() == len(self.rows.slots) * x.shape[-1])
        rows = x.reshape(len(each), -1, x.shape[-1])
        turned = butterfly_change(rows, each.unbind(1)).view_as(x)
        change, excess = F.linear(turned, self.base.weight.to(x.dtype)).to(h.dtype), self.vectors("excess", h)
        plain = h if self.base.bias is None else h - self.base.bias.to(h.dtype)
        return (excess * (plain + change) + change).to(h.dtype)


def turns(R: Tensor) -> Tensor:
    """D − I of all factors, (..., n, n), from the matrices whose skew-symmetric parts are the Q."""
    return cayley_change((R - R.mT) / 2, terms=0)


def butterfly_change(x: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """xR − x (..., in) for the factors' blocks, as `rotated` takes them."""
    total = torch.zeros_like(x)
    for i in reversed(range(len(factors))):
        order = butterfly(x.shape[-1], factors[i].shape[-1], i, x.device)
        turned = rotated((x + total)[..., order.argsort()], factors[i])
        total = total + turned[..., order]
    return total


class ButterflyRotation(Delta):
    """`Δ = (s − 1) ⊙ (h − bias) + s ⊙ W (xR − x)`, R = Pₘ Dₘ Pₘᵀ ⋯ P₁ D₁ P₁ᵀ, each D block-diagonal; s (out,).

    R (factors, blocks, n, n) holds matrices whose skew-symmetric parts are the Q of the Cayley transforms, as in PEFT.
    """

    capabilities = Capabilities(merges=True)
    bank_form = ButterflyBank

    def __init__(self, width_in: int, width_out: int, n: int, factors: int) -> None:
        super().__init__()
        self.R = nn.Parameter(torch.empty(factors, width_in // n, n, n))
        self.s = nn.Parameter(torch.empty(width_out))

    def init_(self, rng: Rng, base: nn.Module) -> None:
        nn.init.zeros_(self.R)
        nn.init.ones_(self.s)

    def change(self, x: Tensor, R: Tensor) -> Tensor:
        """xR − x (..., in)."""
        return butterfly_change(x, turns(R).unbind())

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        change = F.linear(self.change(x, self.R), self.base.weight.to(x.dtype)).to(h.dtype)
        plain = h if self.base.bias is None else h - self.base.bias.to(h.dtype)
        return (self.s - 1).to(h.dtype) * plain + self.s.to(h.dtype) * change

    def merge(self, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
        weight = base["weight"].double()
        eye = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
        rotation = eye + self.change(eye, self.R.double())  # R (in, in)
        return {"weight": (self.s.double().unsqueeze(1) * (weight @ rotation.T)).to(base["weight"].dtype)}


def butterfly(width: int, n: int, i: int, device: torch.device) -> Tensor:
    """The order (width,) of factor i: of the half-blocks (n / 2) of each 2^i blocks, the even ones come first."""
    order = torch.arange(width, device=device)
    return order.view(-1, 2**i, 2, n // 2).transpose(1, 2).flatten() if i else order


@dataclass(frozen=True)
class BOFT(Method):
    """h ← s ⊙ W R x + bias, R a product of m permuted block-diagonal rotations, s at first 1

    Liu et al. 2024, https://arxiv.org/abs/2311.06243. With m = 1 it is OFT with a scale for each output.
    """

    block: int = 4
    """Width n of a block; at each site the divisor of the input's width nearest to it that the factors allow."""
    factors: int = 1
    """Number m of factors; with each, the rotation mixes twice as many inputs."""
    sites: str | tuple[str, ...] = "*.attn.{q,v}"
    """Which matrices; any linear map."""

    size_field: ClassVar[str | None] = "block"
    learning_rate: ClassVar[float] = 1e-2
    view: ClassVar[View] = View(
        "(s − 1)(h − bias) + s W (R x − x)", "parallel", "output of each chosen matrix", "scaled"
    )

    def check(self) -> None:
        at_least(self, block=1, factors=1)

    def pick(self, sites: Sites) -> list[Site]:
        picked = sites.match(self.sites, kinds=("linear",))
        raise_all(
            [
                f"BOFT(factors={self.factors}): the input at {site.name} is {site.width_in} wide, no multiple of "
                f"{2**self.factors}, which so many factors need; give fewer"
                for site in picked
                if not self.block_at(site)
            ][:4]
        )
        return picked

    def block_at(self, site: Site) -> int:
        """Width of a block at one site; 0 if there is none for so many factors."""
        if self.factors == 1:
            return nearest_divisor(site.width_in, self.block)
        groups = 2 ** (self.factors - 1)
        return nearest_divisor(site.width_in, self.block, lambda n: n % 2 == 0 and site.width_in % (n * groups) == 0)

    def build(self, site: Site) -> Delta:
        return ButterflyRotation(site.width_in, site.width_out, self.block_at(site), self.factors)

    def cost(self, site: Site) -> int:
        return self.factors * site.width_in * self.block_at(site) + site.width_out

    def limit(self, sites: Sites) -> int:
        return max(site.width_in for site in self.pick(sites))
