"""PiSSA: LoRA that starts from the principal part of the matrix itself, and trains that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deltatune.core.bank_delta import bucket
from deltatune.core.delta import Delta, Rng, SharedModule
from deltatune.core.errors import DeltatuneError
from deltatune.core.method import Method, View, at_least, at_most
from deltatune.core.sites.site import Site, Sites
from deltatune.methods.low_rank.lora import LowRank
from deltatune.methods.low_rank.low_rank_bank import LowRankBank, wide
from deltatune.methods.low_rank.shared_input import SharedInputs


class PrincipalBank(LowRankBank):
    """Stacks of [A; A − A₀] and [B − B₀, B₀]: LoRAs of twice the rank."""

    @staticmethod
    def padded_rank(delta: Any) -> int:
        return bucket(2 * len(delta.A))

    def write_(self, slot: int, delta: Any, tensors: Mapping[str, Tensor]) -> None:
        A, B, A0, B0 = (wide(tensors[name]) for name in ("A", "B", "A0", "B0"))
        self.write_factors_(slot, torch.cat([A, A - A0]), delta.scale * torch.cat([B - B0, B0], 1))


class Principal(LowRank):
    """`Δ = s · (B A − B₀ A₀) x`, where s B₀ A₀ is the best rank-r part of W.

    It is computed as `s · [B − B₀, B₀] [A; A − A₀] x`: exactly zero at the start, and in bfloat16 only the trained
    change is rounded, not the principal part.
    """

    bank_form = PrincipalBank
    A0: Tensor
    B0: Tensor

    def __init__(self, width_in: int, width_out: int, r: int, scale: float, niter: int) -> None:
        super().__init__(width_in, width_out, r, scale)
        self.register_buffer("A0", torch.empty(r, width_in))
        self.register_buffer("B0", torch.empty(width_out, r))
        self.niter = niter

    @torch.no_grad()
    def init_(self, rng: Rng, base: nn.Module) -> None:
        weight = self.base.weight
        W = weight.to(torch.promote_types(weight.dtype, torch.float32))
        U, S, Vh = range_svd(W, len(self.A), self.niter, rng("range")) if self.niter else svd(W, len(self.A))
        root = (S / self.scale).sqrt()  # S is divided by s first, so that s B A is the principal part for every α
        self.A0 = (root.unsqueeze(1) * Vh).contiguous()
        self.B0 = (U * root).contiguous()
        self.A, self.B = nn.Parameter(self.A0.clone()), nn.Parameter(self.B0.clone())

    def down(self) -> Tensor:
        return torch.cat([self.A, self.A - self.A0])  # (2r, in)

    def up(self) -> Tensor:
        return torch.cat([self.B - self.B0, self.B0], dim=1)  # (out, 2r)

    def merge(self, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
        weight = base["weight"]
        change = self.B.double() @ self.A.double() - self.B0.double() @ self.A0.double()
        return {"weight": (weight.double() + self.scale * change).to(weight.dtype)}


def svd(W: Tensor, r: int) -> tuple[Tensor, Tensor, Tensor]:
    """The r largest singular values of W (out, in), with U (out, r) and Vᵀ (r, in)."""
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    return U[:, :r], S[:r], Vh[:r]


def range_svd(W: Tensor, r: int, niter: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """The same approximately, by subspace iteration: Halko et al. 2009, https://arxiv.org/abs/0909.4061."""
    columns = min(r + 8, *W.shape)
    Q = torch.randn(W.shape[1], columns, generator=generator, dtype=W.dtype).to(W.device)
    Q = torch.linalg.qr(W @ Q).Q  # (out, columns)
    for _ in range(niter):
        Q = torch.linalg.qr(W @ torch.linalg.qr(W.T @ Q).Q).Q
    U, S, Vh = torch.linalg.svd(Q.T @ W, full_matrices=False)
    return (Q @ U)[:, :r], S[:r], Vh[:r]


@dataclass(frozen=True)
class PiSSA(Method):
    """h ← h + s·(B A − B₀ A₀) x, with W ≈ U S Vᵀ, A₀ = √(S_r/s) V_rᵀ, B₀ = U_r √(S_r/s), s = α/r; A and B start there

    Meng et al. 2024, https://arxiv.org/abs/2404.02948. The paper subtracts s·B₀A₀ from W; here W is unchanged and the
    adapter's file holds A₀ and B₀, so that it fits the original base.
    """

    r: int = 16
    """Rank of the principal part (the paper: 128)."""
    alpha: float | None = None
    """The update is multiplied by alpha / r; None means alpha = r, as in the paper."""
    niter: int = 0
    """Rounds of a randomised SVD (16 in the paper's code); 0 computes it exactly."""
    sites: str | tuple[str, ...] = "*.attn.{q,v}"
    """Which matrices; any linear map. The paper takes all."""

    size_field: ClassVar[str | None] = "r"
    learning_rate: ClassVar[float] = 5e-4
    view: ClassVar[View] = View("B A x − B₀ A₀ x", "parallel", "output of each chosen matrix", "scaled")

    def check(self) -> None:
        at_least(self, r=1, niter=0)
        at_most(self, niter=1000)
        if self.alpha is not None and not self.alpha > 0:
            raise DeltatuneError(f"PiSSA(alpha={self.alpha!r}): alpha must be above 0")

    def pick(self, sites: Sites) -> list[Site]:
        return sites.match(self.sites, kinds=("linear",))

    def build(self, site: Site) -> Delta:
        most = min(site.width_in, site.width_out)
        if self.r > most:
            raise DeltatuneError(f"PiSSA(r={self.r}): the matrix at {site.name} has only {most} singular values")
        scale = 1.0 if self.alpha is None else self.alpha / self.r
        return Principal(site.width_in, site.width_out, self.r, scale, self.niter)

    def share(self, picked: object) -> SharedModule | None:
        return SharedInputs()

    def connect(self, delta: Delta, site: Site, shared: SharedModule) -> None:
        assert isinstance(delta, Principal)
        assert isinstance(shared, SharedInputs)
        delta.input = shared.join(delta, site)

    def cost(self, site: Site) -> int:
        return self.r * (site.width_in + site.width_out)

    def limit(self, sites: Sites) -> int:
        return min(min(site.width_in, site.width_out) for site in self.pick(sites))
