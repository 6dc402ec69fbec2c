"""The unified view of He et al. 2022 as a constructor, and MAM, the combination that the paper found best with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltatune.core.capabilities import Capabilities
from deltatune.core.delta import Delta, Rng
from deltatune.core.errors import DeltatuneError
from deltatune.core.method import Method, View, at_least
from deltatune.core.sites.site import Site, Sites
from deltatune.core.union import Compound
from deltatune.methods.adapters.bottleneck import Bottleneck
from deltatune.methods.adapters.bottleneck_bank import UnifiedBank
from deltatune.methods.prompts.prefix import Prefix

FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda low: low,
    "relu": F.relu,
    "gelu": F.gelu,
    "swish": F.silu,
    "tanh": torch.tanh,
    "softmax": lambda low: F.softmax(low, -1),
}


OUTPUTS = {"*.ffn": "output of the FFN", "*.attn": "output of attention", "*.cross": "output of cross-attention"}
"""Descriptions of the sublayers, for tables."""


class UnifiedDelta(Delta):
    """`Δ = s·U f(D x)`, D (r, in), U (out, r); gated: `λ·(U f(D x) − h)`, so that h becomes `(1−λ)h + λ U f(D x)`."""

    bank_form = UnifiedBank

    def __init__(self, width_in: int, width_out: int, method: Unified, merges: bool) -> None:
        super().__init__()
        self.reads = "input" if method.insertion == "parallel" else "output"
        self.down = nn.Parameter(torch.empty(method.r, width_in))
        self.up = nn.Parameter(torch.empty(width_out, method.r))
        self.activation, self.composition = FORMS[method.form], method.composition
        self.across_units = method.form == "softmax"
        usual = {"scaled": 4.0}.get(method.composition, 1.0)
        self.factor = usual if method.scale is None else method.scale
        self.capabilities = Capabilities(merges=merges)
        if method.composition in ("learned", "gated"):
            self.scale = nn.Parameter(torch.empty(()))

    def init_(self, rng: Rng, base: nn.Module) -> None:
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5), generator=rng("down"))
        nn.init.zeros_(self.up)
        if self.composition in ("learned", "gated"):
            nn.init.constant_(self.scale, self.factor if self.composition == "learned" else 0.0)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        low = self.activation(F.linear(x, self.down.to(x.dtype)))  # (..., r)
        out = F.linear(low, self.up.to(x.dtype)).to(h.dtype)
        if self.composition == "gated":
            return self.scale.to(h.dtype) * (out - h)
        return (self.scale.to(h.dtype) if self.composition == "learned" else self.factor) * out

    def merge(self, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
        scale = self.scale.double() if self.composition == "learned" else self.factor
        weight = base["weight"]
        return {"weight": (weight.double() + scale * (self.up.double() @ self.down.double())).to(weight.dtype)}


@dataclass(frozen=True)
class Unified(Method):
    """h ← h + s·U f(D x), x the input or the output of any matrix or sublayer

    He et al. 2022, https://arxiv.org/abs/2110.04366
    LoRA is `linear`, parallel, at matrices; an adapter `relu`, sequential, at sublayers; a prefix is `softmax`,
    parallel, at attention, gated, with D and U in place of its keys (after the query map) and values. Combinations
    outside the paper's table work too: a scaled parallel relu at `*.attn.{q,v}`, a gated one over the FFN.
    """

    r: int = 16
    """Width of the bottleneck: rank, adapter size or prefix length."""
    form: Literal["linear", "relu", "gelu", "swish", "tanh", "softmax"] = "relu"
    """The function f."""
    insertion: Literal["parallel", "sequential"] = "parallel"
    """Parallel reads the input of the site, sequential its output."""
    composition: Literal["add", "scaled", "learned", "gated"] = "scaled"
    """`add`: s = 1; `scaled`: s = scale; `learned`: s trained from scale on; `gated`: (1−λ)h + λΔ, λ trained from 0."""
    scale: float | None = None
    """The multiplier s: 4 if scaled and 1 if learned, unless given."""
    sites: str | tuple[str, ...] = "*.ffn"
    """Any sublayers and matrices: `*.ffn`, `*.attn`, `*.cross`, `*.attn.{q,v}`."""

    size_field: ClassVar[str | None] = "r"
    learning_rate: ClassVar[float] = 1e-3

    def check(self) -> None:
        at_least(self, r=1)
        if self.composition in ("add", "gated") and self.scale is not None:
            raise DeltatuneError(
                f"{self!r}: composition {self.composition!r} has no scale; leave it out, or use 'scaled'"
            )

    @property
    def view(self) -> View:  # type: ignore[override]
        """From its fields."""
        inner = {"linear": "D x", "softmax": "softmax(D x)"}.get(self.form, f"{self.form}(D x)")
        patterns = (self.sites,) if isinstance(self.sites, str) else self.sites
        joins: dict[str, Literal["add", "scaled", "gated"]] = {"add": "add", "gated": "gated"}
        modifies = ", ".join(OUTPUTS.get(sites, sites) for sites in patterns)
        return View(f"U {inner}", self.insertion, modifies, joins.get(self.composition, "scaled"))

    def pick(self, sites: Sites) -> list[Site]:
        return sites.match(self.sites, kinds=("linear", "sublayer"))

    def build(self, site: Site) -> Delta:
        plain = self.form == "linear" and self.insertion == "parallel" and self.composition != "gated"
        return UnifiedDelta(self._reads(site), site.width_out, self, plain and site.kind == "linear")

    def _reads(self, site: Site) -> int:
        return site.width_in if self.insertion == "parallel" else site.width_out

    def cost(self, site: Site) -> int:
        learned = self.composition in ("learned", "gated")
        return self.r * (self._reads(site) + site.width_out) + learned

    def limit(self, sites: Sites) -> int:
        return 4 * max(site.width_out for site in self.pick(sites))

    def sized(self, size: int) -> Method:
        return replace(self, r=size)


@dataclass(frozen=True)
class MAM(Compound):
    """a ← softmax(q [P_k; K]ᵀ/√d) [P_v; V] in attention; h ← h + s·U relu(D x) over the FFN

    He et al. 2022, https://arxiv.org/abs/2110.04366
    Their finding: a small budget is best spent in attention (a prefix of 30), a large one on the FFN (width 512).
    """

    length: int = 30
    """Positions of the prefix; 16 for understanding tasks in the paper."""
    size: int = 512
    """Width of the parallel bottleneck; 16 for understanding tasks in the paper."""
    scale: float = 4.0
    """The multiplier s; 2 for understanding tasks in the paper."""
    mlp: int = 0
    """Width of the network that reparametrises the prefix while training; 800 in the paper, 0 trains it directly."""

    size_field: ClassVar[str | None] = "size"
    learning_rate: ClassVar[float] = 1e-3
    view: ClassVar[View] = View("prefix + U relu(D x)", "parallel", "attention heads; FFN output", "scaled")

    def check(self) -> None:
        at_least(self, length=1, size=1, mlp=0)

    @property
    def union(self) -> Method:
        return Prefix(length=self.length, mlp=self.mlp) + Bottleneck(self.size, form="parallel", scale=self.scale)

    def sized(self, size: int) -> Method:
        """The same with both parts scaled, in the paper's proportion."""
        return replace(self, size=size, length=max(1, round(self.length * size / self.size)))

    def without_reparametrisation(self) -> Method:
        return replace(self, mlp=0)
