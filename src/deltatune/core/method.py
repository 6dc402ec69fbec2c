"""Methods: frozen dataclasses that say which Deltas to build, where, and how many parameters they have."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, ClassVar, Literal

from deltatune.core.delta import Delta, SharedModule
from deltatune.core.errors import DeltatuneError
from deltatune.core.input_validation.field_validation import check_fields
from deltatune.core.input_validation.option_names import NamedOptions, refuse_unknown
from deltatune.core.sites.site import Site, Sites

REGISTRY: dict[str, Callable[..., Method]] = {}
"""Method classes, entered by being defined, and short forms; read it through `core.registry.registry`."""
PROMPTING_REGISTRY: dict[str, Callable[..., Method]] = {}
"""Prompting methods, entered by being defined; read it through `core.registry.prompting_registry`."""


@dataclass(frozen=True)
class View:
    """The facts of the unified view (He et al. 2022, https://arxiv.org/abs/2110.04366) that each method declares."""

    form: str
    """Functional form of the change."""
    insertion: Literal["parallel", "sequential", "none"]
    """Parallel reads the sublayer's input, sequential its output; none for changes of weights or inputs."""
    modifies: str
    """The modified representation, for tables."""
    composition: Literal["add", "scaled", "gated", "replace"]
    """How the change joins the representation."""


@dataclass(frozen=True)
class Method(NamedOptions):
    """Hyper-parameters of one paper's method: the sites it acts on and the Delta it builds for each.

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

    def share(self, picked: Sequence[Site]) -> SharedModule | None:
        """Build the module that the Deltas of one adapter share (a prefix's MLP); None for most methods."""
        return None

    def connect(self, delta: Delta, site: Site, shared: SharedModule) -> None:
        """Connect one Delta with the shared module."""

    def cost(self, site: Site) -> int:
        """Closed-form number of trainable parameters at one site."""
        raise NotImplementedError(f"{type(self).__name__} has no closed-form cost")

    def count(self, sites: Sites) -> int:
        """Closed-form number of trainable parameters on a model, heads left out."""
        return sum(self.cost(site) for site in self.pick(sites))

    def limit(self, sites: Sites) -> int:
        """Largest useful value of the size field on a model."""
        return 2**20

    def without_reparametrisation(self) -> Method:
        """The method as stored after training: itself, unless training used a reparametrisation."""
        return self

    def with_token_ids(self, tokenize: Callable[[str], Sequence[int]], labels: Sequence[str]) -> Method:
        """The method with its initial text, or the task's labels, as token ids: itself where it has neither."""
        return self

    def __init_subclass__(cls, registry: dict[str, Callable[..., Method]] | None = REGISTRY) -> None:
        super().__init_subclass__()
        if "__repr__" not in cls.__dict__:  # before the dataclass decorator puts its own
            cls.__repr__ = Method.__repr__  # type: ignore[method-assign]
        if registry is not None and not cls.__name__.startswith("_"):
            registry[cls.__name__] = cls

    @property
    def input_template(self) -> str:
        """The template that places its virtual tokens in the input; "" where they come first, or there are none."""
        return ""

    def with_virtual_tokens(self, ids: Sequence[int | None]) -> Method:
        """The method with as many virtual tokens, each with the id of the token that it starts from, or None."""
        raise DeltatuneError(f"{self!r} has no virtual tokens that a template could place")

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
        """Prefix of the names of its tensors."""
        return type(self).__name__.lower()

    def __add__(self, other: Method) -> Method:
        if not isinstance(other, Method):
            return NotImplemented
        from deltatune.core.union import join  # a Union is a Method, so it is defined above

        return join(self, other)

    def __repr__(self) -> str:
        options = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != field.default or field.name == self.size_field:
                options.append(f"{field.name}={value!r}")
        return f"{type(self).__name__}({', '.join(options)})"

    def __post_init__(self) -> None:
        check_fields(self)
        self.check()

    def check(self) -> None:
        """Raise DeltatuneError for invalid values; called on construction."""


def at_least(method: Method, **least: float) -> None:
    """Raise unless each named field is at least the number given: `at_least(self, r=1, size=1)`."""
    for name, bound in least.items():
        value = getattr(method, name)
        if not value >= bound:
            raise DeltatuneError(f"{type(method).__name__}({name}={value!r}): {name} must be at least {bound}")


def check_dropout(method: Any) -> None:
    """Raise unless its field `dropout` is a share of at least 0 that leaves something."""
    at_least(method, dropout=0)
    value = method.dropout
    if value >= 1:
        raise DeltatuneError(f"{type(method).__name__}(dropout={value!r}) leaves nothing; dropout is a share below 1")


def at_most(method: Method, **most: float) -> None:
    """Raise unless each named field is at most the number given, such as a number of rounds that would never end."""
    for name, bound in most.items():
        value = getattr(method, name)
        if not value <= bound:
            raise DeltatuneError(f"{type(method).__name__}({name}={value!r}): {name} must be at most {bound}")


def short_form(maker: Callable[..., Method]) -> Callable[..., Method]:
    """Register a function that returns a method under its name, such as `Houlsby()`. Unknown options are refused."""
    names = list(inspect.signature(maker).parameters)

    @wraps(maker)
    def make(*values: Any, **options: Any) -> Method:
        refuse_unknown(maker.__name__, options, names)
        return maker(*values, **options)

    REGISTRY[maker.__name__] = make
    return make


def hyperparameters(method: Method | type[Method]) -> dict[str, Any]:
    """Hyper-parameters of a method and their values (defaults for a class)."""
    if isinstance(method, type):
        return {field.name: field.default for field in dataclasses.fields(method)}
    return {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}
