"""What: a Delta returns a change of a representation; a Method says which Deltas, where, and how many parameters.

The one rule is `h <- h + sum_i w_i * Delta_i(x, h)`: `x` is what a site reads, `h` what is there.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from deltatune.core.errors import DeltatuneError
from deltatune.core.fields import check_fields
from deltatune.core.sites import Site, Sites

REGISTRY: dict[str, Callable[..., Method]] = {}
"""Method classes, entered by being defined, and short forms; read it through `core.text.registry`."""

Rng = Callable[[str], torch.Generator]
"""Gives the generator of one tensor: its values depend on (seed, tensor name) alone."""


def generator_for(seed: int, name: str) -> torch.Generator:
    """CPU generator seeded by (seed, name): independent of creation order, device and other tensors."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") % 2**63)


class Delta(nn.Module):
    """A change of one representation. Subclasses are written for `x`, `h` of shape (..., width)."""

    reads: Literal["input", "output", "normed"] = "input"
    """What `x` is: the site's input, its output `h`, or `h` after a post-LN block's own residual sum and LayerNorm."""
    mixes: bool = True
    """May share a batch with other adapters, of any method."""
    folds: bool = False
    """Has an exact weight form: `fold` gives the base's parameters with the change inside."""
    tokens: int = 0
    """Virtual tokens it needs in front of each row (kind `embed`)."""
    shift: int = 0
    """Positions by which it moves the real tokens (kind `kv`)."""

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Return the change of `h`, of h's shape.

        At kind `embed`, `x` are the token ids. At kind `kv` a Delta is called with keys and values (B, H_kv, S, K) and
        returns both with its own in front; the change is that of the attention's output.
        """
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def add(self, h: Tensor, x: Tensor, weight: float | Tensor = 1.0) -> Tensor:
        """Return `h + weight * Delta(x, h)`; subclasses override it only to compute the same faster or exactly."""
        changed: Tensor = h + weight * self(x, h)
        return changed

    def init_(self, rng: Rng, base: nn.Module) -> None:
        """Set the initial values; `base` is the module at the site (never to be changed)."""

    def fold(self, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return changed copies of the base's parameters: `weight` (out, in) and `bias` (out,), sliced to the site."""
        raise NotImplementedError(f"{type(self).__name__} has no weight form")

    def finished(self) -> Delta:
        """Return what is kept after training: itself, unless training used a reparametrisation."""
        return self


@dataclass(frozen=True)
class View:
    """The facts of the unified view (He et al. 2022, https://arxiv.org/abs/2110.04366) that each method declares."""

    form: str
    """Functional form of the change."""
    insertion: Literal["parallel", "sequential", "none"]
    """Parallel reads the sublayer's input, sequential its output; none for changes of weights or inputs."""
    modifies: str
    """The modified representation, in words."""
    composition: Literal["add", "scaled", "gated", "replace"]
    """How the change joins the representation."""


@dataclass(frozen=True)
class Method:
    """Hyper-parameters of one paper's method: which sites it wants and the Delta it builds for each.

    Subclasses are frozen dataclasses whose docstring begins with the equation and names the paper. Methods add:
    `Prefix(length=30) + Bottleneck(size=512, form="parallel")`.
    """

    size_field: ClassVar[str | None] = None
    """The field that a parameter budget sets; None where the method has no size."""
    learning_rate: ClassVar[float] = 1e-3
    """Recommended peak rate for AdamW: the middle of the comparison's search."""
    starts_as_base: ClassVar[bool] = True
    """Whether a new adapter changes no output until it is trained; a property where that depends on the fields."""
    view: ClassVar[View]

    def pick(self, sites: Sites) -> list[Site]:
        """Sites the method acts on; by default those its `sites` globs match."""
        return sites.match(self.sites)  # type: ignore[attr-defined]

    def build(self, site: Site) -> Delta:
        """Build the Delta for one picked site."""
        raise NotImplementedError(f"{type(self).__name__} builds nothing")

    def share(self, picked: Sequence[Site]) -> nn.Module | None:
        """Build what the Deltas of one adapter share (a prefix's MLP); None for most methods."""
        return None

    def connect(self, delta: Delta, site: Site, shared: nn.Module) -> None:
        """Give one Delta its part of what is shared."""

    def cost(self, site: Site) -> int:
        """Closed-form number of trainable parameters at one site."""
        raise NotImplementedError(f"{type(self).__name__} has no closed-form cost")

    def count(self, sites: Sites) -> int:
        """Closed-form number of trainable parameters on a model, heads left out."""
        return sum(self.cost(site) for site in self.pick(sites))

    def limit(self, sites: Sites) -> int:
        """Largest value of the size field that makes sense on a model."""
        return 2**20

    def finished(self) -> Method:
        """The method as stored after training: itself, unless training used a reparametrisation."""
        return self

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "__repr__" not in cls.__dict__:  # before the dataclass decorator puts its own
            cls.__repr__ = Method.__repr__  # type: ignore[method-assign]
        if not cls.__name__.startswith("_"):
            REGISTRY[cls.__name__] = cls

    @property
    def size(self) -> int | None:
        """Value of the size field."""
        return None if self.size_field is None else int(getattr(self, self.size_field))

    def sized(self, size: int) -> Method:
        """The same method with another size."""
        return self if self.size_field is None else dataclasses.replace(self, **{self.size_field: size})

    @property
    def parts(self) -> tuple[Method, ...]:
        """The single methods of a union; itself otherwise."""
        return (self,)

    @property
    def label(self) -> str:
        """Short name for tables and plots, without sizes."""
        return type(self).__name__

    def __add__(self, other: Method) -> Method:
        if not isinstance(other, Method):
            return NotImplemented
        return Union((*self.parts, *other.parts))

    def __repr__(self) -> str:
        shown = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != field.default or field.name == self.size_field:
                shown.append(f"{field.name}={value!r}")
        return f"{type(self).__name__}({', '.join(shown)})"

    def __post_init__(self) -> None:
        check_fields(self)
        self.check()

    def check(self) -> None:
        """Raise DeltatuneError for values that make no sense; called on construction."""


def at_least(method: Method, **least: float) -> None:
    """Raise unless each named field is at least the number given: `at_least(self, r=1, dropout=0)`."""
    for name, bound in least.items():
        value = getattr(method, name)
        if not value >= bound:
            raise DeltatuneError(f"{type(method).__name__}({name}={value!r}): {name} must be at least {bound}")


@dataclass(frozen=True, repr=False)
class Union(Method):
    """Several methods at once in one adapter: `LoRA(r=8) + Prefix(length=30)`. Changes at one site add up."""

    members: tuple[Method, ...] = ()

    @property
    def parts(self) -> tuple[Method, ...]:
        return self.members

    @property
    def view(self) -> View:  # type: ignore[override]
        """The members' facts side by side."""
        views = [member.view for member in self.members]
        return View(
            " + ".join(view.form for view in views),
            views[0].insertion,
            " + ".join(view.modifies for view in views),
            "add",
        )

    @property
    def learning_rate(self) -> float:  # type: ignore[override]
        """The geometric mean of the members' recommended rates."""
        rates = torch.tensor([member.learning_rate for member in self.members], dtype=torch.float64)
        return float(rates.log().mean().exp())

    @property
    def starts_as_base(self) -> bool:  # type: ignore[override]
        """Whether every member does."""
        return all(member.starts_as_base for member in self.members)

    def pick(self, sites: Sites) -> list[Site]:
        return [site for member in self.members for site in member.pick(sites)]

    def count(self, sites: Sites) -> int:
        return sum(member.count(sites) for member in self.members)

    def finished(self) -> Method:
        return Union(tuple(member.finished() for member in self.members))

    @property
    def size(self) -> int | None:
        sizes = [member.size for member in self.members if member.size is not None]
        return max(sizes) if sizes else None

    def sized(self, size: int) -> Method:
        """Scale every member's size so that the largest becomes `size`, each at least 1."""
        largest = self.size or 1
        return Union(tuple(member.sized(max(1, round((member.size or 1) * size / largest))) for member in self.members))

    @property
    def label(self) -> str:
        return " + ".join(member.label for member in self.members)

    def limit(self, sites: Sites) -> int:
        limits = [member.limit(sites) for member in self.members if member.size is not None]
        return min(limits) if limits else 1

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.members))


REGISTRY.pop("Union")


def short_form(maker: Callable[..., Method]) -> Callable[..., Method]:
    """Register a function that returns a method under its name, such as `Houlsby()`. Returns it unchanged."""
    REGISTRY[maker.__name__] = maker
    return maker


def fields_of(method: Method | type[Method]) -> dict[str, Any]:
    """Hyper-parameters of a method and their values (defaults for a class)."""
    if isinstance(method, type):
        return {field.name: field.default for field in dataclasses.fields(method)}
    return {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}
