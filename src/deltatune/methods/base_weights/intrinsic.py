"""Intrinsic dimension: training in a random subspace of all weights, whose smallest sufficient size can be measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from deltatune.core.capabilities import Capabilities
from deltatune.core.delta import ComputedWeight, Delta, Rng, SharedModule
from deltatune.core.errors import DeltatuneError
from deltatune.core.method import Method, View, at_least
from deltatune.core.sites.site import Site, Sites
from deltatune.methods.base_weights.fastfood import Fastfood


class Subspace(SharedModule):
    """θ_d and, for SAID, the λ's: all trained parameters of one adapter; it also draws its Deltas' projections."""

    drawn: Tensor

    def __init__(self, dimension: int, places: Mapping[str, int], picked: Sequence[Site]) -> None:
        """`places`: index of each parameter's λ, by the name of its site."""
        super().__init__()
        m = len(set(places.values()))
        self.theta = nn.Parameter(torch.zeros(dimension - m))
        self.scales = nn.Parameter(torch.ones(m)) if m else None
        self.places = dict(places)
        self.register_buffer("drawn", torch.zeros(()))
        self.prefix = _common([site.name for site in picked])
        """Common prefix of all names: a model and the same model with a head differ in it."""
        self.members: dict[str, SubspaceWeight] = {}
        self.check = 0.0
        self.checked: tuple[int, int] | None = None

    def init_(self, rng: Rng) -> None:
        """Start as the base. Projections depend on the seed and the weight's name within the bare model alone."""
        nn.init.zeros_(self.theta)
        if self.scales is not None:
            nn.init.ones_(self.scales)
        for name, member in self.members.items():
            member.projection.draw_(partial(_drawing, rng, name))
        self.check = sum(member.projection.check for member in self.members.values())
        self.drawn.fill_(self.check)
        self.members.clear()  # they refer to this subspace: a cycle would outlive the adapter

    def verify(self) -> None:
        """Raise unless the projections are those that θ_d was trained with: only their seed is in an adapter's file."""
        version = id(self.drawn), self.drawn._version
        if version != self.checked and not bool(self._as_trained()):
            raise DeltatuneError(
                "the random projections drawn here are not those that this adapter was trained with: another version "
                f"of torch draws other numbers, and this one is {torch.__version__}; load the adapter where it was "
                "trained, and merge it there"
            )
        self.checked = version

    def _as_trained(self) -> Tensor:
        return (self.drawn - self.check).abs() <= 1e-4 * max(1.0, abs(self.check))

    def vector(self, place: int | None) -> Tensor:
        """λ θ_d (d,)."""
        theta: Tensor = self.theta
        if torch.compiler.is_compiling():  # a graph cannot raise
            theta = theta * torch.where(self._as_trained(), 1.0, math.nan).to(theta.dtype)
        else:
            self.verify()
        return theta if place is None or self.scales is None else self.scales[place] * theta


class SubspaceWeight(ComputedWeight):
    """`θ = θ_0 + λ P(θ_d)` for one parameter θ of the base."""

    capabilities = Capabilities(merges=True, mixes=False)

    projection: Fastfood

    def __init__(self, size: int, reach: str) -> None:
        """`size`: numbers in the parameter."""
        super().__init__()
        self.size, self.reach = size, reach
        self.subspace: list[Subspace] = []  # in a list, so that the shared module is registered once, with the adapter
        self.place: int | None = None
        """Index of its λ."""

    def join(self, subspace: Subspace, name: str) -> None:
        """Join an adapter's subspace; `name` is that of the site."""
        self.subspace, self.place = [subspace], subspace.places.get(name)
        subspace.members[name.removeprefix(subspace.prefix)] = self
        d = len(subspace.theta)
        widest = max(d, self.size) if self.reach == "all" else self.size
        self.projection = Fastfood(d, self.size, 2 ** (widest - 1).bit_length())

    def weight(self, original: Tensor) -> Tensor:
        """θ, of the original's shape, which the model reads in place of the original."""
        change: Tensor = self.projection(self.subspace[0].vector(self.place))
        return original + change.view_as(original)

    def sources(self) -> Sequence[Tensor]:
        """The tensors from which `weight` is computed: θ_d and the λ's."""
        return tuple(self.subspace[0].parameters())

    @torch.no_grad()
    def merge(self, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: self.weight(tensor).to(tensor.dtype) for name, tensor in base.items()}


def _drawing(rng: Rng, name: str, part: str) -> torch.Generator:
    return rng(f"{name}.{part}")


@dataclass(frozen=True)
class DID(Method):
    """θ = θ_0 + P(θ_d)

    Direct intrinsic dimension, Li et al. 2018, https://arxiv.org/abs/1804.08838; of language models Aghajanyan et al.
    2020, https://arxiv.org/abs/2012.13255. P is a Fastfood transform for each weight tensor of the base, drawn from the
    seed and not trained; every tensor changes by a norm of about ‖θ_d‖, whatever its size. The task's head is trained
    too and not counted. It runs alone: it cannot share a batch.
    """

    dimension: int = 1000
    """Length d of θ_d: the number of trained parameters."""
    reach: Literal["all", "first"] = "all"
    """Weights with fewer than d numbers: changed by all of θ_d, or by its first part only, as in reference code."""

    size_field: ClassVar[str | None] = "dimension"
    view: ClassVar[View] = View("P(θ_d) x", "none", "weights", "add")

    @property
    def learning_rate(self) -> float:  # type: ignore[override]
        """0.3/√d, at most 3e-2: AdamW moves every number by the rate, so a step of θ_d is √d times as long."""
        return min(3e-2, float(f"{0.3 / math.sqrt(self.dimension):.2g}"))

    def check(self) -> None:
        at_least(self, dimension=1)

    def pick(self, sites: Sites) -> list[Site]:
        return list(sites.weights.values())

    def build(self, site: Site) -> Delta:
        return SubspaceWeight(site.params, self.reach)

    def share(self, picked: Sequence[Site]) -> SharedModule | None:
        places = self.scaled(picked)
        least, most = len(set(places.values())) + 1, sum(site.params for site in picked)
        if not least <= self.dimension <= most:
            inside = f", {least - 1} λ's among them" if places else ""
            raise DeltatuneError(f"{self!r} does not fit this model: the dimension must be {least} to {most:,}{inside}")
        return Subspace(self.dimension, places, picked)

    def scaled(self, picked: Sequence[Site]) -> dict[str, int]:
        """Index of each parameter's λ, by the name of its site; empty without λ's."""
        return {}

    def connect(self, delta: Delta, site: Site, shared: SharedModule) -> None:
        assert isinstance(delta, SubspaceWeight)
        assert isinstance(shared, Subspace)
        delta.join(shared, site.name)

    def count(self, sites: Sites) -> int:
        return self.dimension

    def limit(self, sites: Sites) -> int:
        return sites.base_params


@dataclass(frozen=True)
class SAID(DID):
    """θᵢ = θ₀ᵢ + λᵢ Pᵢ(θ_{d−m})

    Structure-aware intrinsic dimension, Aghajanyan et al. 2020, https://arxiv.org/abs/2012.13255: as DID, with a
    learned scale λ for each layer. The m numbers λ count towards the dimension; they start at 1.
    """

    dimension: int = 1000
    """Number of trained parameters: the λ's, and θ_d, of length d − m."""
    reach: Literal["all", "first"] = "all"
    """Weights with fewer than d numbers: changed by all of θ_d, or by its first part only, as in reference code."""
    scales: Literal["layer", "tensor"] = "layer"
    """A λ for each layer, as in the paper (the weights below all blocks are one, those above another), or for each
    weight tensor, as in reference code."""

    view: ClassVar[View] = View("λ P(θ_d) x", "none", "weights", "scaled")

    def scaled(self, picked: Sequence[Site]) -> dict[str, int]:
        names = {site.name: site.name if self.scales == "tensor" else _layer(site) for site in picked}
        order = {name: i for i, name in enumerate(dict.fromkeys(names.values()))}
        return {path: order[name] for path, name in names.items()}

    def count(self, sites: Sites) -> int:
        least = len(set(self.scaled(self.pick(sites)).values())) + 1
        return max(self.dimension, least)  # a budget tries the smallest there is


def _layer(site: Site) -> str:
    """The block of a weight (`encoder.layer.3`), or `below` or `above` all blocks."""
    if site.layer is None or site.layer >= site.depth:
        return "below" if site.layer is None else "above"
    stack = takewhile(lambda component: not component.isdigit(), site.name.split("."))  # Swin numbers its stages too
    return ".".join([*stack, str(site.layer)])


def _common(names: Sequence[str]) -> str:
    """The common leading components of all names, with a dot at the end."""
    columns = zip(*(name.split(".")[:-1] for name in names), strict=False)
    return "".join(f"{column[0]}." for column in takewhile(lambda column: len(set(column)) == 1, columns))
