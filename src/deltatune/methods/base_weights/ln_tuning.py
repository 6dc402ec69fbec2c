"""LN tuning: only the normalisation layers are trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from deltatune.core.delta import Delta
from deltatune.core.method import Method, View
from deltatune.core.module_copy import ModuleCopy
from deltatune.core.sites.site import Site, Sites, require


@dataclass(frozen=True)
class LNTuning(Method):
    """h ← γ′ ⊙ (x − μ)/σ + β′ for every LayerNorm; γ′ ⊙ x/rms(x) for every RMSNorm

    Zhao et al. 2023, https://arxiv.org/abs/2312.11420. BitFit trains β alone, beside the biases of linear maps.
    """

    sites: str | tuple[str, ...] = ""
    """Which norms, `*.norm.0`, `layers.{2,3}.norm.1`; empty for all, those outside the blocks included."""

    learning_rate: ClassVar[float] = 1e-2
    view: ClassVar[View] = View("γ′ ⊙ norm(x) + β′ − h", "none", "output of every norm", "replace")

    def pick(self, sites: Sites) -> list[Site]:
        if self.sites:
            return sites.match(self.sites, kinds=("norm",))
        picked = [site for site in sites.values() if site.kind == "norm" and site.params]
        require(picked, "norm with parameters", sites)
        return picked

    def build(self, site: Site) -> Delta:
        return ModuleCopy()

    def cost(self, site: Site) -> int:
        return site.params
