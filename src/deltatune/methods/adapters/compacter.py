"""Compacter: bottleneck adapters whose matrices are sums of Kronecker products of shared and low-rank factors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from deltatune.core.delta import Delta, Rng, SharedModule
from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.method import Method, View, at_least, short_form
from deltatune.core.module_copy import ModuleCopy
from deltatune.core.sites.site import Site, Sites
from deltatune.methods.adapters.bottleneck import ACTIVATIONS, READS, SITES, Activation, Form
from deltatune.methods.adapters.bottleneck_bank import KroneckerBank


class SharedKroneckerFactors(SharedModule):
    """A (n, n, n): the first Kronecker factors, shared by all layers and both projections."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(n, n, n))

    def init_(self, rng: Rng) -> None:
        nn.init.normal_(
            self.A, std=1e-4, generator=rng("A")
        )  # as in the paper's code: a negligible change at the start


class PHM(nn.Module):
    """`W x`, Wᵀ = Σ_i A_i ⊗ (s_i t_iᵀ), s (n, in/n, 1), t (n, 1, out/n).

    W is never materialised: n³ + n (in + out) products per token instead of in · out.
    """

    def __init__(self, width_in: int, width_out: int, n: int) -> None:
        super().__init__()
        self.s = nn.Parameter(torch.empty(n, width_in // n, 1))
        self.t = nn.Parameter(torch.empty(n, 1, width_out // n))

    def init_(self, rng: Rng) -> None:
        for name in ("s", "t"):
            for factor in getattr(self, name):
                nn.init.xavier_uniform_(factor, gain=math.sqrt(2), generator=rng(name))

    def forward(self, x: Tensor, A: Tensor) -> Tensor:
        s, t = self.s.squeeze(2).to(x.dtype), self.t.squeeze(1).to(x.dtype)
        u = x.reshape(*x.shape[:-1], len(s), -1) @ s.T  # (..., a, i): each block of x along each s_i
        v = torch.einsum("...ai,iab->...bi", u, A.to(x.dtype))
        return (v @ t).flatten(-2)  # (..., b, out/n) -> (..., out)


class TwoPHM(Delta):
    """`Δ = U f(D x + b_D) + b_U`, D and U sums of Kronecker products."""

    bank_form = KroneckerBank

    def __init__(self, width_in: int, width_out: int, size: int, n: int, form: Form, activation: Activation) -> None:
        super().__init__()
        self.reads = READS[form]
        self.down, self.down_bias = PHM(width_in, size, n), nn.Parameter(torch.empty(size))
        self.up, self.up_bias = PHM(size, width_out, n), nn.Parameter(torch.empty(width_out))
        self.activation = ACTIVATIONS[activation]
        self.rule: list[
            SharedKroneckerFactors
        ] = []  # in a list, so that the shared module is registered once, with the adapter

    def init_(self, rng: Rng, base: nn.Module) -> None:
        nn.init.zeros_(self.down_bias)
        nn.init.zeros_(self.up_bias)
        self.down.init_(lambda name: rng(f"down.{name}"))
        self.up.init_(lambda name: rng(f"up.{name}"))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        A = self.rule[0].A
        inner = self.activation(self.down(x, A) + self.down_bias.to(x.dtype))  # (..., m)
        change: Tensor = self.up(inner, A) + self.up_bias.to(x.dtype)
        return change


@dataclass(frozen=True)
class Compacter(Method):
    """h ← h + U f(D x + b) + b′, with D and U of the form Σ_i A_i ⊗ (s_i t_iᵀ)

    Karimi Mahabadi et al. 2021, https://arxiv.org/abs/2106.04647. The n matrices A_i (n, n) are shared by all layers
    and both projections; each layer has its own vectors s_i and t_i. After attention and FFN; after the FFN alone it
    is Compacter++. LayerNorms are trained too, as in the paper.
    The start is the base up to rounding: A is drawn with deviation 1e-4, and the change has its square as a factor.
    """

    size: int = 24
    """Bottleneck width m, a multiple of n."""
    n: int = 4
    """Number of Kronecker products; all widths must be multiples of it. The paper uses 4, 8 and 12."""
    form: Form = "houlsby"
    """Where it reads, as in Bottleneck: `houlsby`, `pfeiffer` or `parallel`."""
    activation: Activation = "gelu_new"
    """The non-linearity f."""
    norms: bool = True
    """Also train the LayerNorms."""
    sites: str | tuple[str, ...] = ""
    """Which sublayers; empty for the form's own: `*.{attn,ffn}` for houlsby, `*.ffn` for the others."""

    size_field: ClassVar[str | None] = "size"
    learning_rate: ClassVar[float] = 3e-3
    view: ClassVar[View] = View("U f(D x)", "sequential", "output of attention and FFN", "add")

    def check(self) -> None:
        at_least(self, size=1, n=1)
        if self.size % self.n:
            below, above = self.size // self.n * self.n, self.sized(self.size).size
            near = f"{below} or {above}" if below else above
            raise DeltatuneError(f"{self!r}: the size must be a multiple of n={self.n}, such as {near}")

    @property
    def label(self) -> str:
        return "Compacter" if "attn" in str(self._where) else "Compacter++"

    @property
    def _where(self) -> str | tuple[str, ...]:
        return self.sites or SITES[self.form]

    def sized(self, size: int) -> Method:
        """The same method with the next size that is a multiple of n."""
        return dataclasses.replace(self, size=-(-size // self.n) * self.n)

    def pick(self, sites: Sites) -> list[Site]:
        norms = [site for site in sites.values() if site.kind == "norm"] if self.norms else []
        picked, model = sites.match(self._where, kinds=("sublayer",)), sites.facts.architecture
        problems = [
            f"{self!r}: the width {width} of this {model} is not a multiple of n={self.n}; choose n among "
            + ", ".join(str(n) for n in range(1, 17) if width % n == 0)
            for width in sorted({width for site in picked for width in (site.width_in, site.width_out)})
            if width % self.n
        ]
        if self.norms and not norms:
            problems.append(f"{self!r}: this {model} has no LayerNorms to train; write norms=False")
        raise_all(problems)
        return picked + norms

    def build(self, site: Site) -> Delta:
        if site.kind == "norm":
            return ModuleCopy()
        return TwoPHM(site.width_in, site.width_out, self.size, self.n, self.form, self.activation)

    def share(self, picked: Sequence[Site]) -> SharedModule | None:
        return SharedKroneckerFactors(self.n)

    def connect(self, delta: Delta, site: Site, shared: SharedModule) -> None:
        if isinstance(delta, TwoPHM):
            assert isinstance(shared, SharedKroneckerFactors)
            delta.rule = [shared]

    def cost(self, site: Site) -> int:
        if site.kind == "norm":
            return site.params
        return site.width_in + 2 * self.size + site.width_out + self.size + site.width_out  # factors, then biases

    def count(self, sites: Sites) -> int:
        return self.n**3 + super().count(sites)

    def limit(self, sites: Sites) -> int:
        return 4 * max(site.width_out for site in sites.match(self._where, kinds=("sublayer",)))


@short_form
def CompacterPlusPlus(size: int = 24, n: int = 4, norms: bool = True) -> Compacter:
    """Compacter++ of the same paper: after the FFN only."""
    return Compacter(size=size, n=n, norms=norms, sites="*.ffn")
