"""BitFit: only the biases are trained."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from deltatune.core.bank_delta import BankDelta
from deltatune.core.capabilities import Capabilities
from deltatune.core.delta import Delta, Rng
from deltatune.core.errors import DeltatuneError
from deltatune.core.method import Method, View
from deltatune.core.sites.site import Kind, Site, Sites


class BiasBank(BankDelta):
    """The stack b (S, out)."""

    def __init__(self, delta: Delta, site: Site, capacity: int, dtype: torch.dtype) -> None:
        super().__init__(delta, site, capacity, dtype)
        self.add_stack("b", site.width_out)

    @classmethod
    def shape(cls, delta: Delta, site: Site) -> Hashable:
        return site.width_out

    def write_(self, slot: int, delta: Delta, tensors: Mapping[str, Tensor]) -> None:
        self.write_stack_("b", slot, tensors["b"])

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.vectors("b", h).to(h.dtype).expand_as(h)

    def add(self, h: Tensor, x: Tensor, weight: float | Tensor = 1.0) -> Tensor:
        return h + weight * self.vectors("b", h).to(h.dtype)


class Bias(Delta):
    """`Δ = b`, b (out,)."""

    bank_form = BiasBank
    capabilities = Capabilities(merges=True, merges_into=("bias",))
    reads = "output"

    def __init__(self, width: int) -> None:
        super().__init__()
        self.b = nn.Parameter(torch.empty(width))

    def init_(self, rng: Rng, base: nn.Module) -> None:
        nn.init.zeros_(self.b)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.b.to(h.dtype).expand_as(h)

    def add(self, h: Tensor, x: Tensor, weight: float | Tensor = 1.0) -> Tensor:
        return h + weight * self.b.to(h.dtype)

    def merge(self, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
        bias = base["bias"]
        return {"bias": (bias.double() + self.b.double()).to(bias.dtype)}


@dataclass(frozen=True)
class BitFit(Method):
    """h ← h + b at the output of every linear map and LayerNorm that has a bias

    Ben Zaken et al. 2022, https://arxiv.org/abs/2106.10199
    """

    sites: str | tuple[str, ...] = ""
    """Which biases; empty for all. The paper's small subset is `*.{attn.q,ffn.in}`."""
    missing: Literal["error", "add"] = "error"
    """Maps without a bias (Llama, T5): `error` refuses a model that has none, `add` gives every map a new zero bias."""

    learning_rate: ClassVar[float] = 2e-3
    view: ClassVar[View] = View("b", "sequential", "output of every map with a bias", "add")

    def pick(self, sites: Sites) -> list[Site]:
        kinds: tuple[Kind, ...] = ("linear", "norm")
        wanted = sites.match(self.sites, kinds=kinds) if self.sites else [s for s in sites.values() if s.kind in kinds]
        wanted = [site for site in wanted if not _covered(site, wanted)]
        picked = [site for site in wanted if site.bias or self.missing == "add"]
        if not picked:
            raise DeltatuneError(
                f"this {sites.facts.architecture} has no biases at {self.sites or 'any site'}; "
                "BitFit(missing='add') trains new zero ones"
            )
        return picked

    def build(self, site: Site) -> Delta:
        return Bias(site.width_out)

    def cost(self, site: Site) -> int:
        return site.width_out


def _covered(site: Site, wanted: list[Site]) -> bool:
    """Whether a site is a slice of a fused projection that is picked as a whole: its bias must not be counted twice."""
    return site.slice is not None and any(other.module == site.module and other.slice is None for other in wanted)
