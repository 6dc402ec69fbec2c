"""What an adapter changes, in forms that can be added up.

A Delta is `low_rank` (ΔW = B A), `bias` (b), `scaling` (l - 1), `weight` (W' - W), or `matrix`: it has a weight form,
but its tensors are not linear in it (DoRA). Deltas without a weight form cannot be added up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deltatune.core.adapter import Adapter
from deltatune.core.errors import raise_all
from deltatune.core.host import Host
from deltatune.core.sites.fused_projections import put
from deltatune.core.sites.site import Site

FORMS: dict[frozenset[str], str] = {
    frozenset("AB"): "low_rank",
    frozenset("db"): "low_rank",  # VeRA
    frozenset("b"): "bias",
    frozenset("l"): "scaling",
}
"""Form of a Delta by the names of its trained tensors."""


@dataclass(frozen=True)
class Change:
    """One Delta of one adapter."""

    adapter: str
    weight: float
    site: Site
    delta: Any
    form: str

    def factors(self) -> tuple[Tensor, Tensor, float]:
        """(A, B, s) of a `low_rank` one, with ΔW = s·BA."""
        delta = self.delta
        if hasattr(delta, "d"):  # VeRA: diag(λ_b) B diag(λ_d) A
            return delta.d.detach().unsqueeze(1) * delta.A, delta.b.detach().unsqueeze(1) * delta.B, 1.0
        made = hasattr(delta, "down")
        a, b = (delta.down(), delta.up()) if made else (delta.A, delta.B)
        return a.detach(), b.detach(), float(delta.scale)

    def vector(self) -> Tensor:
        """The own tensor of a `bias`, a `scaling` or a `weight`, as a difference from no change."""
        if self.form == "bias":
            return self.delta.b.detach().double()  # type: ignore[no-any-return]
        if self.form == "scaling":
            return self.delta.l.detach().double() - 1  # type: ignore[no-any-return]
        return next(iter(self.matrices().values()))

    @torch.no_grad()
    def matrices(self) -> dict[str, Tensor]:
        """The change of each of the base's parameters at the site, (out, in), in double precision."""
        if self.form == "bias":
            return {"bias": self.vector()}  # also where the base has none
        base = {name: tensor.detach().double() for name, tensor in self.delta.base.parameters().items()}
        return {name: tensor - base[name] for name, tensor in self.delta.merge(base).items()}


def changes_of(host: Host, weights: Mapping[str, float]) -> list[Change]:
    """The Deltas of several adapters, heads left out. Raises DeltatuneError naming those that have no weight form."""
    found, problems = [], []
    for name, weight in weights.items():
        adapter: Adapter = host.adapters[name].finished()
        stuck = set()
        for _, site, delta in adapter.entries():
            if site.kind == "head":
                continue
            trained = frozenset(key for key, _ in delta.named_parameters())
            form = "weight" if site.kind == "weight" else FORMS.get(trained, "matrix")
            if not delta.merges:
                stuck.add(type(delta).__name__)
            found.append(Change(name, weight, site, delta, form))
        if stuck:
            problems.append(f"{name!r} ({adapter.method!r}): {', '.join(sorted(stuck))} has no weight form")
    routed = ", ".join(f"{name!r}: {weight:g}" for name, weight in weights.items())
    raise_all(problems, f"cannot add up; mix them live with host.use({{{routed}}}):" if problems else "")
    return found


def place_of(host: Host, change: Change, name: str, whole: set[str]) -> tuple[Site, bool]:
    """The site at which a change of parameter `name` is gathered, and whether it must be widened to the whole module.

    `whole` are the modules that some adapter changes as a whole: their parts are gathered there too.
    """
    site = change.site
    if site.kind in ("linear", "embed", "norm") and (site.slice is None or site.module not in whole):
        return site, False
    for other in host.sites.values():
        if other.module == site.module and other.kind in ("linear", "embed", "norm") and other.slice is None:
            return other, site.slice is not None
    return site, False


def widened(part: Tensor, site: Site, rows: int) -> Tensor:
    """A change of a part of a fused projection, (out, in) or (out,), among zeros for the other parts."""
    turned = part.T if part.dim() == 2 else part
    return put(turned.new_zeros(*turned.shape[:-1], rows), site.slice, turned).T
