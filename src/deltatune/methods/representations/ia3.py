"""(IA)³: keys, values and the FFN's activations, scaled element by element."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from deltatune.core.bank_delta import BankDelta
from deltatune.core.capabilities import Capabilities
from deltatune.core.delta import Delta, Rng
from deltatune.core.method import Method, View
from deltatune.core.sites.site import Site, Sites

PAPER = ("*.attn.{k,v}", "*.ffn.act")
CROSS = "*.cross.{k,v}"


class RescaleBank(BankDelta):
    """The stack l − 1 (S, width)."""

    def __init__(self, delta: Delta, site: Site, capacity: int, dtype: torch.dtype) -> None:
        super().__init__(delta, site, capacity, dtype)
        self.add_stack("excess", site.width_out)

    @classmethod
    def shape(cls, delta: Delta, site: Site) -> Hashable:
        return site.width_out

    def write_(self, slot: int, delta: Delta, tensors: Mapping[str, Tensor]) -> None:
        self.write_stack_("excess", slot, tensors["l"] - 1)  # before rounding: l is close to 1

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return h * self.vectors("excess", h).to(h.dtype)

    def add(self, h: Tensor, x: Tensor, weight: float | Tensor = 1.0) -> Tensor:
        excess = self.vectors("excess", h)
        excess = excess if isinstance(weight, float) and weight == 1.0 else excess * weight
        return torch.addcmul(h, h, excess.to(h.dtype))


class Rescale(Delta):
    """`Δ = h ⊙ (l − 1)`, l (width,): of a map's output, or of its input."""

    capabilities = Capabilities(merges=True)
    bank_form = RescaleBank

    def __init__(self, width: int, side: Literal["output", "input"]) -> None:
        super().__init__()
        self.l = nn.Parameter(torch.empty(width))
        self.side = side

    def init_(self, rng: Rng, base: nn.Module) -> None:
        nn.init.ones_(self.l)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return h * (self.l - 1).to(h.dtype)  # 1 is subtracted before rounding: l is close to it

    def add(self, h: Tensor, x: Tensor, weight: float | Tensor = 1.0) -> Tensor:
        if isinstance(weight, Tensor):
            return super().add(h, x, weight)
        if weight == 1.0 and h.dtype == self.l.dtype:
            return h * self.l
        return torch.addcmul(h, h, (weight * (self.l - 1)).to(h.dtype))

    def merge(self, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
        l = self.l.double()  # noqa: E741  # the paper's letter
        if self.side == "input":
            return {"weight": (base["weight"].double() * l).to(base["weight"].dtype)}
        rows = {name: l.view(-1, *[1] * (tensor.dim() - 1)) for name, tensor in base.items()}
        return {name: (tensor.double() * rows[name]).to(tensor.dtype) for name, tensor in base.items()}


@dataclass(frozen=True)
class IA3(Method):
    """k ← k ⊙ l_k, v ← v ⊙ l_v, and the FFN's activations a ← a ⊙ l_ff

    Liu et al. 2022, https://arxiv.org/abs/2205.05638. In a gated FFN a is the product that its last map reads.
    """

    sites: str | tuple[str, ...] = (*PAPER, CROSS)
    """Which outputs of maps, and which inputs (`*.ffn.act`, `*.attn.heads`); `*.cross` only where there is any."""

    learning_rate: ClassVar[float] = 3e-3
    view: ClassVar[View] = View("h ⊙ (l − 1)", "sequential", "keys, values and FFN activations", "scaled")

    def pick(self, sites: Sites) -> list[Site]:
        paper = self.sites == (*PAPER, CROSS)
        wanted = PAPER if paper and not sites.facts.encoder_decoder else self.sites
        return sites.match(wanted, kinds=("linear", "input"))

    def build(self, site: Site) -> Delta:
        return Rescale(site.width_out, "input" if site.kind == "input" else "output")

    def cost(self, site: Site) -> int:
        return site.width_out
