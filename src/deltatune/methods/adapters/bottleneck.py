"""Bottleneck adapters: a small two-layer network in series with a sublayer, or in parallel to it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltatune.core.delta import Delta, Rng
from deltatune.core.errors import DeltatuneError
from deltatune.core.method import Method, View, at_least, check_dropout, short_form
from deltatune.core.module_copy import ModuleCopy
from deltatune.core.sites.site import Site, Sites
from deltatune.methods.adapters.bottleneck_bank import TwoLayerBank

Form = Literal["houlsby", "pfeiffer", "parallel"]
Activation = Literal["relu", "gelu", "gelu_new", "swish", "tanh"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "swish": F.silu,
    "tanh": torch.tanh,
}
SITES: dict[str, str] = {"houlsby": "*.{attn,ffn}", "pfeiffer": "*.ffn", "parallel": "*.ffn"}
READS: dict[str, Literal["input", "output", "normed"]] = {
    "houlsby": "output",
    "pfeiffer": "normed",
    "parallel": "input",
}


class TwoLayer(Delta):
    """`Δ = s · (U f(D x + b_D) + b_U)`, D (m, in), U (out, m)."""

    bank_form = TwoLayerBank

    def __init__(
        self,
        width_in: int,
        width_out: int,
        size: int,
        form: Form,
        activation: str,
        scale: float | Literal["learned"],
        init: str,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.reads = READS[form]
        self.down = nn.Parameter(torch.empty(size, width_in))
        self.down_bias = nn.Parameter(torch.empty(size))
        self.up = nn.Parameter(torch.empty(width_out, size))
        self.up_bias = nn.Parameter(torch.empty(width_out))
        self.scale = nn.Parameter(torch.ones(())) if scale == "learned" else scale
        self.activation = ACTIVATIONS[activation]
        self.init = init
        self.dropout = dropout

    def init_(self, rng: Rng, base: nn.Module) -> None:
        nn.init.zeros_(self.down_bias)
        nn.init.zeros_(self.up_bias)
        if self.init == "identity":
            nn.init.kaiming_uniform_(self.down, a=math.sqrt(5), generator=rng("down"))
            nn.init.zeros_(self.up)
        else:  # Houlsby et al.: both near zero, truncated at two deviations
            for name in ("down", "up"):
                nn.init.trunc_normal_(getattr(self, name), std=1e-3, a=-2e-3, b=2e-3, generator=rng(name))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        inner = self.activation(F.linear(x, self.down.to(x.dtype), self.down_bias.to(x.dtype)))  # (..., m)
        if self.dropout:
            inner = F.dropout(inner, self.dropout, self.training)
        scale = self.scale.to(x.dtype) if isinstance(self.scale, Tensor) else self.scale
        return scale * F.linear(inner, self.up.to(x.dtype), self.up_bias.to(x.dtype))


@dataclass(frozen=True)
class Bottleneck(Method):
    """h ← h + s·(U f(D x + b) + b′)

    `houlsby`: x = h, after attention and after the FFN, before the residual sum.
    Houlsby et al. 2019, https://arxiv.org/abs/1902.00751

    `pfeiffer`: after the FFN only; in post-LN blocks x = LN(h + residual), by the block's own LayerNorm.
    Pfeiffer et al. 2020, https://arxiv.org/abs/2005.00247

    `parallel`: x = the FFN's input; with scale > 1 the scaled parallel adapter.
    He et al. 2022, https://arxiv.org/abs/2110.04366
    """

    size: int = 48
    """Bottleneck width m."""
    form: Form = "houlsby"
    """Where it reads: `houlsby`, `pfeiffer` or `parallel`."""
    activation: Activation = "relu"
    """The non-linearity f; `gelu_new` is GPT-2's form of gelu, by tanh."""
    scale: float | Literal["learned"] = 1.0
    """The multiplier s; He et al. use 4 for generation and 2 for understanding; `learned`: one number each, from 1."""
    init: Literal["identity", "small"] = "identity"
    """`identity`: U = 0, so that the start is the base exactly; `small`: Houlsby's truncated normal, deviation 1e-3."""
    norms: bool = False
    """Also train the LayerNorms, as Houlsby et al. do."""
    sites: str | tuple[str, ...] = ""
    """Which sublayers; empty for the form's own: `*.{attn,ffn}` for houlsby, `*.ffn` for the others."""
    dropout: float = 0.0
    """Dropout after the non-linearity, as in He et al."""

    size_field: ClassVar[str | None] = "size"
    learning_rate: ClassVar[float] = 1e-3
    view: ClassVar[View] = View("U f(D x)", "sequential", "output of attention and FFN", "add")

    @property
    def starts_as_base(self) -> bool:  # type: ignore[override]
        """Whether U = 0 at the start."""
        return self.init == "identity"

    def check(self) -> None:
        at_least(self, size=1)
        check_dropout(self)

    @property
    def label(self) -> str:
        return f"{self.form.capitalize()} adapter"

    def pick(self, sites: Sites) -> list[Site]:
        norms = [site for site in sites.values() if site.kind == "norm"] if self.norms else []
        if self.norms and not norms:
            raise DeltatuneError(f"{self!r}: this {sites.facts.architecture} has no LayerNorms to train")
        return sites.match(self.sites or SITES[self.form], kinds=("sublayer",)) + norms

    def build(self, site: Site) -> Delta:
        if site.kind == "norm":
            return ModuleCopy()
        form, activation, scale, init = self.form, self.activation, self.scale, self.init
        return TwoLayer(site.width_in, site.width_out, self.size, form, activation, scale, init, self.dropout)

    def cost(self, site: Site) -> int:
        if site.kind == "norm":
            return site.params
        maps = self.size * (site.width_in + site.width_out) + self.size + site.width_out
        return maps + (self.scale == "learned")

    def limit(self, sites: Sites) -> int:
        return 4 * max(site.width_out for site in sites.match(self.sites or SITES[self.form], kinds=("sublayer",)))


@short_form
def Houlsby(size: int = 64, norms: bool = True) -> Bottleneck:
    """Bottleneck as in Houlsby et al. 2019: GELU, near-zero start, LayerNorms trained."""
    return Bottleneck(size=size, form="houlsby", activation="gelu", init="small", norms=norms)


@short_form
def Pfeiffer(size: int = 48) -> Bottleneck:
    """Bottleneck as in Pfeiffer et al. 2020: one after each FFN."""
    return Bottleneck(size=size, form="pfeiffer")


@short_form
def Parallel(size: int = 512, scale: float = 4.0) -> Bottleneck:
    """The scaled parallel adapter of He et al. 2022."""
    return Bottleneck(size=size, form="parallel", scale=scale)
