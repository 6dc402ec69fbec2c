"""VeRA: LoRA's matrices drawn once for all layers and frozen; only vectors between and after them are trained."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltatune.core.bank_delta import BankDelta
from deltatune.core.capabilities import Capabilities
from deltatune.core.delta import Delta, Rng, SharedModule
from deltatune.core.method import Method, View, at_least, check_dropout
from deltatune.core.sites.site import Site, Sites
from deltatune.methods.low_rank.shared_input import few_tokens


class Projection(SharedModule):
    """A (r, largest in) and B (largest out, r), random and frozen; each site uses the corner that fits it."""

    A: Tensor
    B: Tensor

    def __init__(self, r: int, width_in: int, width_out: int, save: bool) -> None:
        super().__init__()
        self.register_buffer("A", torch.empty(r, width_in), persistent=save)
        self.register_buffer("B", torch.empty(width_out, r), persistent=save)

    def init_(self, rng: Rng) -> None:
        nn.init.kaiming_uniform_(self.A, generator=rng("A"))
        nn.init.kaiming_uniform_(self.B, generator=rng("B"))


class ScaledProjectionBank(BankDelta):
    """Stacks λ_d (S, r) and λ_b (S, out) around one A and B, which adapters must have in common to share stacks."""

    reads_shared = True

    def __init__(self, delta: Any, site: Site, capacity: int, dtype: torch.dtype) -> None:
        super().__init__(delta, site, capacity, dtype)
        self.width_in, self.width_out = delta.width_in, delta.width_out
        self.add_stack("d", len(delta.d))
        self.add_stack("b", delta.width_out)
        self.first: list[ScaledProjectionBank] = []
        """The one that has A and B, for all of its adapters' sites; in a list, so that no module owns another."""

    @classmethod
    def shape(cls, delta: Any, site: Site) -> Hashable:
        return tuple(delta.projection[0].A.shape), tuple(delta.projection[0].B.shape)

    @staticmethod
    def connect_(members: Sequence[tuple[Site, BankDelta]]) -> None:
        first = members[0][1]
        for _, delta in members:
            assert isinstance(delta, ScaledProjectionBank)
            assert isinstance(first, ScaledProjectionBank)
            delta.first = [first]

    def takes(self, tensors: Mapping[str, Tensor]) -> bool:
        if self.first[0] is not self:
            return True
        return all(torch.equal(self.get_buffer(name), self.own(tensors, name)) for name in ("A", "B"))

    def own(self, tensors: Mapping[str, Tensor], name: str) -> Tensor:
        """A or B of an adapter, as it is kept here."""
        return tensors[f"shared.{name}"].to(self.get_buffer("d"))

    def write_(self, slot: int, delta: Any, tensors: Mapping[str, Tensor]) -> None:
        if self.first[0] is self and not hasattr(self, "A"):
            for name in ("A", "B"):
                self.register_buffer(name, self.own(tensors, name).clone(), persistent=False)
        for name in ("d", "b"):
            self.write_stack_(name, slot, tensors[name])

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        A = self.first[0].get_buffer("A")[:, : self.width_in]
        B = self.first[0].get_buffer("B")[: self.width_out]
        low = F.linear(x.to(A.dtype), A) * self.vectors("d", x)  # (B, ..., r)
        return (F.linear(low, B) * self.vectors("b", h)).to(h.dtype)

    @property
    def bytes(self) -> int:
        projection = [self.get_buffer(name) for name in ("A", "B")] if hasattr(self, "A") else []
        return super().bytes + sum(tensor.numel() * tensor.element_size() for tensor in projection)


class ScaledProjection(Delta):
    """`Δ = λ_b ⊙ B (λ_d ⊙ A dropout(x))`, λ_d (r,), λ_b (out,)."""

    capabilities = Capabilities(merges=True)
    bank_form = ScaledProjectionBank

    def __init__(self, width_in: int, width_out: int, r: int, d_initial: float, dropout: float) -> None:
        super().__init__()
        self.d = nn.Parameter(torch.empty(r))
        self.b = nn.Parameter(torch.empty(width_out))
        self.width_in, self.width_out = width_in, width_out
        self.d_initial, self.dropout = d_initial, dropout
        self.projection: list[Projection] = []
        """The projection of all sites; in a list, so that it is saved once."""

    def init_(self, rng: Rng, base: nn.Module) -> None:
        nn.init.constant_(self.d, self.d_initial)
        nn.init.zeros_(self.b)

    @property
    def A(self) -> Tensor:
        """(r, in)."""
        return self.projection[0].A[:, : self.width_in]

    @property
    def B(self) -> Tensor:
        """(out, r)."""
        return self.projection[0].B[: self.width_out]

    def low(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """`λ_d ⊙ A dropout(x)`, (..., r)."""
        x = F.dropout(x, self.dropout, self.training) if self.dropout else x
        return F.linear(x.to(dtype), self.A.to(dtype)) * self.d.to(dtype)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        dtype = self.d.dtype if few_tokens(x, self.d) else x.dtype
        return (F.linear(self.low(x, dtype), self.B.to(dtype)) * self.b.to(dtype)).to(h.dtype)

    def add(self, h: Tensor, x: Tensor, weight: float | Tensor = 1.0) -> Tensor:
        if isinstance(weight, Tensor) or torch.is_autocast_enabled(x.device.type) or few_tokens(x, self.d):
            return super().add(h, x, weight)
        low = self.low(x, x.dtype).flatten(0, -2)  # (N, r)
        up = (self.b.unsqueeze(1) * self.B).to(x.dtype)  # (out, r)
        return torch.addmm(h.flatten(0, -2).to(x.dtype), low, up.T, alpha=weight).view_as(h).to(h.dtype)

    def low_rank_factors(self) -> tuple[Tensor, Tensor, float]:
        return self.d.detach().unsqueeze(1) * self.A, self.b.detach().unsqueeze(1) * self.B, 1.0

    def merge(self, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
        weight = base["weight"]
        change = (self.b.double().unsqueeze(1) * self.B.double()) @ (self.d.double().unsqueeze(1) * self.A.double())
        return {"weight": (weight.double() + change).to(weight.dtype)}


@dataclass(frozen=True)
class VeRA(Method):
    """h ← h + λ_b ⊙ B (λ_d ⊙ A x), A and B random, frozen and the same at every site

    Kopiczko et al. 2024, https://arxiv.org/abs/2310.11454
    """

    r: int = 256
    """Rank: rows of A and columns of B."""
    d_initial: float = 0.1
    """Initial value of λ_d; λ_b starts at 0."""
    dropout: float = 0.0
    """Dropout on the branch's input only."""
    save_projection: bool = True
    """Whether files hold A and B; if not, they are drawn again from the adapter's seed."""
    sites: str | tuple[str, ...] = "*.attn.{q,v}"
    """Which matrices; any linear map."""

    size_field: ClassVar[str | None] = "r"
    learning_rate: ClassVar[float] = 1e-2
    view: ClassVar[View] = View("λ_b ⊙ B (λ_d ⊙ A x)", "parallel", "output of each chosen matrix", "scaled")

    def check(self) -> None:
        at_least(self, r=1)
        check_dropout(self)

    def pick(self, sites: Sites) -> list[Site]:
        return sites.match(self.sites, kinds=("linear",))

    def build(self, site: Site) -> Delta:
        return ScaledProjection(site.width_in, site.width_out, self.r, self.d_initial, self.dropout)

    def share(self, picked: Sequence[Site]) -> SharedModule | None:
        widest_in, widest_out = max(site.width_in for site in picked), max(site.width_out for site in picked)
        return Projection(self.r, widest_in, widest_out, self.save_projection)

    def connect(self, delta: Delta, site: Site, shared: SharedModule) -> None:
        assert isinstance(delta, ScaledProjection)
        assert isinstance(shared, Projection)
        delta.projection = [shared]

    def cost(self, site: Site) -> int:
        return self.r + site.width_out

    def limit(self, sites: Sites) -> int:
        # Beyond the largest width the random rows of A are no longer independent.
        return max(max(site.width_in, site.width_out) for site in self.pick(sites))
