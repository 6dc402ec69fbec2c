"""Methods: frozen dataclasses that say which Deltas, where, and how many parameters; and sums of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn

from deltatune.core.delta import Delta
from deltatune.core.errors import DeltatuneError
from deltatune.core.sites.site import Site, Sites
from deltatune.core.validation import check_fields

REGISTRY: dict[str, Callable[..., Method]] = {}
"""Method classes, entered by being defined, and short forms; read it through `core.text.registry`."""


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

    def worded(self, tokenize: Callable[[str], Sequence[int]], labels: Sequence[str]) -> Method:
        """The method with its words (initial texts, the task's labels) as token ids: itself where it has none."""
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

    @property
    def key(self) -> str:
        """What the names of its tensors begin with."""
        return type(self).__name__.lower()

    def __add__(self, other: Method) -> Method:
        if not isinstance(other, Method):
            return NotImplemented
        return Union((*_members(self), *_members(other)))

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
        return tuple(part for member in self.members for part in member.parts)

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
        rates = [member.learning_rate for member in self.members]
        return math.exp(sum(map(math.log, rates)) / len(rates))

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

    def worded(self, tokenize: Callable[[str], Sequence[int]], labels: Sequence[str]) -> Method:
        return Union(tuple(member.worded(tokenize, labels) for member in self.members))

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


def _members(method: Method) -> tuple[Method, ...]:
    return method.members if isinstance(method, Union) else (method,)


@dataclass(frozen=True)
class Compound(Method):
    """A method of a paper that is a union of others, with fields of its own."""

    @property
    def union(self) -> Method:
        """The methods it stands for."""
        raise NotImplementedError(f"{type(self).__name__} names no methods")

    @property
    def parts(self) -> tuple[Method, ...]:
        return self.union.parts

    @property
    def starts_as_base(self) -> bool:  # type: ignore[override]
        """Whether every part does."""
        return self.union.starts_as_base

    def pick(self, sites: Sites) -> list[Site]:
        return self.union.pick(sites)

    def count(self, sites: Sites) -> int:
        return self.union.count(sites)

    def limit(self, sites: Sites) -> int:
        return self.union.limit(sites)


REGISTRY.pop("Compound")


def short_form(maker: Callable[..., Method]) -> Callable[..., Method]:
    """Register a function that returns a method under its name, such as `Houlsby()`. Returns it unchanged."""
    REGISTRY[maker.__name__] = maker
    return maker


def fields_of(method: Method | type[Method]) -> dict[str, Any]:
    """Hyper-parameters of a method and their values (defaults for a class)."""
    if isinstance(method, type):
        return {field.name: field.default for field in dataclasses.fields(method)}
    return {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}
