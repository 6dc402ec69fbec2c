"""Terms of a weighted sum of adapters: one per Delta, in a form that can be added.

The form of a Delta is `low_rank` (ΔW = B A), `bias` (b), `scaling` (l - 1), `weight` (W' - W), or `matrix`: it has a
weight form, but is not linear in its tensors (DoRA). Deltas without a weight form cannot be added.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from deltatune.core.adapter import Adapter
from deltatune.core.errors import raise_all
from deltatune.core.host import Host
from deltatune.core.sites.base_weights import BaseWeights
from deltatune.core.sites.fused_projections import put
from deltatune.core.sites.site import Site, Slice

FORMS: dict[frozenset[str], str] = {
    frozenset("AB"): "low_rank",
    frozenset("db"): "low_rank",  # VeRA
    frozenset(("logits_A", "logits_B")): "low_rank",  # VB-LoRA
    frozenset("b"): "bias",
    frozenset("l"): "scaling",
}
"""Form of a Delta by the names of its trained tensors."""


@dataclass(frozen=True)
class DeltaTerm:
    """One Delta of one adapter with the adapter's weight in the sum."""

    adapter: str
    weight: float
    site: Site
    delta: Any
    form: str
    method: str
    """Name of the method that built the Delta."""

    def factors(self) -> tuple[Tensor, Tensor, float]:
        """Return (A, B, s) of a `low_rank` term, with ΔW = s·BA."""
        factors: tuple[Tensor, Tensor, float] = self.delta.low_rank_factors()
        return factors

    def difference(self) -> Tensor:
        """Return the tensor of a `bias`, `scaling` or `weight` term as a difference from the base."""
        if self.form == "bias":
            return self.delta.b.detach().double()  # type: ignore[no-any-return]
        if self.form == "scaling":
            return self.delta.l.detach().double() - 1  # type: ignore[no-any-return]
        return next(iter(self.matrices().values()))

    @torch.no_grad()
    def matrices(self) -> dict[str, Tensor]:
        """Return the change of each base parameter at the site, (out, in), in float64."""
        if self.form == "bias":
            return {"bias": self.difference()}  # also if the base has no bias
        base = {name: tensor.detach().double() for name, tensor in self.delta.base.parameters().items()}
        return {name: tensor - base[name] for name, tensor in self.delta.merge(base).items()}


def delta_terms(host: Host, weights: Mapping[str, float]) -> list[DeltaTerm]:
    """List the Deltas of several adapters without heads. Raises DeltatuneError naming those without a weight form."""
    terms, problems = [], []
    for name, weight in weights.items():
        adapter: Adapter = host.adapters[name].without_reparametrisation()
        unmergeable = set()
        for key, site, delta in adapter.entries():
            if site.kind == "head":
                continue
            trained = frozenset(parameter for parameter, _ in delta.named_parameters())
            form = "weight" if site.kind == "weight" else FORMS.get(trained, "matrix")
            if not delta.capabilities.merges:
                unmergeable.add(adapter.method_at(key))
            if site.kind == "weight":
                site = replace(site, name=site.path)  # not as in the model where the adapter was trained
            terms.append(DeltaTerm(name, weight, site, delta, form, adapter.method_at(key)))
        if unmergeable:
            problems.append(f"{name!r} ({adapter.method!r}): {', '.join(sorted(unmergeable))} has no weight form")
    route = ", ".join(f"{name!r}: {weight:g}" for name, weight in weights.items())
    raise_all(problems, f"cannot be added; use them together, unmerged: host.use({{{route}}})" if problems else "")
    return terms


def target_site(host: Host, term: DeltaTerm, whole_modules: set[str]) -> tuple[Site, bool]:
    """Return the site whose matrix collects a term, and whether the term must be widened to the whole module.

    `whole_modules` are the modules that some adapter changes as a whole: terms of their slices are collected there too.
    """
    site = term.site
    if site.kind in ("linear", "embed", "norm") and (site.slice is None or site.module not in whole_modules):
        return site, False
    for other in host.sites.values():
        if other.module == site.module and other.kind in ("linear", "embed", "norm") and other.slice is None:
            return other, site.slice is not None
    return site, False


def widen_slice(change: Tensor, site: Site, rows: int) -> Tensor:
    """Place a change of a slice of a fused projection, (out, in) or (out,), into zeros of the whole projection."""
    transposed = change.T if change.dim() == 2 else change
    return put(transposed.new_zeros(*transposed.shape[:-1], rows), site.slice, transposed).T


class BaseParameters:
    """The base's parameters by path, and the sites at which other methods change each of them."""

    def __init__(self, host: Host) -> None:
        plain = [path for path, site in host.sites.weights.items() if not site.quantized]
        self.paths = {id(host.model.get_parameter(path)): path for path in plain}
        self.sites: dict[str, list[tuple[BaseWeights, str]]] = {}
        for site in host.sites.values():
            if site.kind in ("linear", "norm", "embed"):
                base = BaseWeights(host.model.get_submodule(site.module), site)
                for parameter in {"weight", *dict(base.module.named_parameters())}:
                    self.sites.setdefault(self.place(base, parameter)[0], []).append((base, parameter))

    def place(self, base: BaseWeights, parameter: str) -> tuple[str, Slice | None]:
        """Path and slice of a site's parameter; a new bias gets the path that it would have, a quantised weight its
        own, which no other module shares."""
        tensor = dict(base.module.named_parameters()).get(parameter)
        return self.paths.get(id(tensor), f"{base.site.module}.{parameter}"), base.site.slice

    def parts(self, path: str) -> list[tuple[BaseWeights, str]]:
        """The sites of one whole parameter: the parts of a fused projection, or one site; none outside of sites."""
        sites = self.sites.get(path, [])
        whole = [each for each in sites if each[0].site.slice is None]
        parts = [each for each in sites if each[0].site.slice is not None]
        widths = {base.site.width_out for base, _ in whole}
        return parts if {sum(base.site.width_out for base, _ in parts)} == widths else whole[:1]
