"""OFT: the input of a frozen matrix is rotated, block by block, so that angles between its neurons stay."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltatune.core.bank_delta import BankDelta
from deltatune.core.capabilities import Capabilities
from deltatune.core.delta import Delta, Rng
from deltatune.core.errors import DeltatuneError
from deltatune.core.method import Method, View, at_least, at_most
from deltatune.core.sites.site import Site, Sites


def cayley_change(Q: Tensor, terms: int) -> Tensor:
    """R − I of skew-symmetric blocks Q (..., n, n): of the Cayley transform R = (I − Q)(I + Q)⁻¹ with `terms` 0.

    Otherwise of I + 2Q + 2Q² + … + Qᵏ, k = terms − 1 (at least 3 from 3 terms on, as in PEFT), which approaches
    (I + Q)(I − Q)⁻¹: the rotation the other way round, as in PEFT.
    """
    with torch.autocast(Q.device.type, enabled=False):
        if terms == 0:
            eye = torch.eye(Q.shape[-1], dtype=Q.dtype, device=Q.device)
            solved: Tensor = torch.linalg.solve(eye + Q, -2 * Q, left=False)
            return solved
        change, power = 2 * Q, Q
        last = 1 if terms == 2 else max(terms - 1, 3)
        for exponent in range(2, last + 1):
            power = power @ Q
            change = change + (2 * power if exponent < last else power)
        return change


def rotated(x: Tensor, blocks: Tensor) -> Tensor:
    """x (..., in) times a block-diagonal matrix, blocks (in / n, n, n), or (1, n, n) for the same one everywhere.

    With (B, in / n, n, n) or (B, 1, n, n), x (B, T, in), each row has a matrix of its own.
    """
    n = blocks.shape[-1]
    parts = x.reshape(*x.shape[:-1], x.shape[-1] // n, n)  # (..., in / n, n)
    if blocks.dim() == 4:
        each = blocks.expand(-1, parts.shape[-2], n, n).flatten(0, 1)  # (B · in / n, n, n)
        turned = torch.bmm(parts.transpose(1, 2).reshape(len(each), -1, n), each.to(x.dtype))
        return turned.view(len(blocks), -1, parts.shape[1], n).transpose(1, 2).flatten(-2)
    if len(blocks) == 1:
        parts = parts @ blocks[0].to(x.dtype)
        return parts.flatten(-2)
    return torch.einsum("...bk,bkc->...bc", parts, blocks.to(x.dtype)).flatten(-2)


def nearest_divisor(width: int, wanted: int, allowed: Callable[[int], bool] = lambda n: True) -> int:
    """The divisor of a width, above 1, that is nearest to `wanted`; the smaller of two. 0 if none is allowed."""
    fitting = [n for n in range(2, width + 1) if width % n == 0 and allowed(n)]
    return min(fitting, key=lambda n: (abs(n - wanted), n), default=0)


class RotationBank(BankDelta):
    """The stack R − I (S, blocks, n, n); the product with the base's weight is one for all rows."""

    def __init__(self, delta: Any, site: Site, capacity: int, dtype: torch.dtype) -> None:
        super().__init__(delta, site, capacity, dtype)
        self.base = delta.base
        self.add_stack("turn", len(delta.Q), delta.n, delta.n)

    @classmethod
    def shape(cls, delta: Any, site: Site) -> Hashable:
        return len(delta.Q), delta.n

    def write_(self, slot: int, delta: Any, tensors: Mapping[str, Tensor]) -> None:
        self.write_stack_("turn", slot, delta.blocks(tensors["Q"].double()))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        turn = self.of_rows("turn", keep=x.numel() == len(self.rows.slots) * x.shape[-1])
        change = rotated(x.reshape(len(turn), -1, x.shape[-1]), turn).view_as(x)
        return F.linear(change, self.base.weight.to(x.dtype)).to(h.dtype)


class Rotation(Delta):
    """`Δ = W (xR − x)`, R block-diagonal; Q (blocks, n (n − 1) / 2) holds the upper triangles of skew-symmetric blocks.

    W is read, not trained; the change costs one more product with it until it is merged.
    """

    capabilities = Capabilities(merges=True)
    bank_form = RotationBank

    def __init__(self, blocks: int, n: int, terms: int) -> None:
        super().__init__()
        self.Q = nn.Parameter(torch.empty(blocks, n * (n - 1) // 2))
        self.n, self.terms = n, terms

    def init_(self, rng: Rng, base: nn.Module) -> None:
        nn.init.zeros_(self.Q)

    def blocks(self, Q: Tensor) -> Tensor:
        """R − I, (blocks, n, n)."""
        rows, columns = torch.triu_indices(self.n, self.n, 1, device=Q.device)
        upper = Q.new_zeros(len(Q), self.n, self.n)
        upper[:, rows, columns] = Q
        return cayley_change(upper - upper.mT, self.terms)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        change = rotated(x, self.blocks(self.Q))
        return F.linear(change, self.base.weight.to(x.dtype)).to(h.dtype)

    def merge(self, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
        weight = base["weight"].double()
        change = rotated(weight, self.blocks(self.Q.double()).mT)  # W (R − I)ᵀ
        return {"weight": (weight + change).to(base["weight"].dtype)}


@dataclass(frozen=True)
class OFT(Method):
    """h ← W R x + bias, R = diag(R₁, …), Rᵢ = (I − Qᵢ)(I + Qᵢ)⁻¹ with Qᵢ = −Qᵢᵀ

    Qiu et al. 2023, https://arxiv.org/abs/2306.07280; rotating the input, with the series, it is OFTv2 of Qiu et al.
    2025, https://arxiv.org/abs/2506.19847. The norm of each neuron and the angles between neurons stay as they are
    within a block.
    """

    block: int = 32
    """Width n of a block; at each site the divisor of the input's width, above 1, that is nearest to it."""
    blocks: Literal["own", "shared"] = "own"
    """Whether each block has a rotation of its own, or all blocks of a matrix share one."""
    terms: int = 5
    """Terms of a series in Q that stands for the inverse (OFTv2); 0 computes the inverse. With a series R is orthogonal
    as far as Q is small."""
    sites: str | tuple[str, ...] = "*.attn.{q,v}"
    """Which matrices; any linear map."""

    size_field: ClassVar[str | None] = "block"
    learning_rate: ClassVar[float] = 5e-3
    view: ClassVar[View] = View("W (R x − x)", "parallel", "output of each chosen matrix", "add")

    def check(self) -> None:
        at_least(self, block=1, terms=0)
        at_most(self, terms=100)
        if self.terms == 1:
            raise DeltatuneError("OFT(terms=1): the first term alone is no rotation; give at least 2, or 0 for all")

    def pick(self, sites: Sites) -> list[Site]:
        return sites.match(self.sites, kinds=("linear",))

    def block_at(self, site: Site) -> int:
        """Width of a block at one site."""
        return nearest_divisor(site.width_in, self.block)

    def build(self, site: Site) -> Delta:
        n = self.block_at(site)
        return Rotation(1 if self.blocks == "shared" else site.width_in // n, n, self.terms)

    def cost(self, site: Site) -> int:
        n = self.block_at(site)
        return (1 if self.blocks == "shared" else site.width_in // n) * (n * (n - 1) // 2)

    def limit(self, sites: Sites) -> int:
        return max(site.width_in for site in self.pick(sites))
