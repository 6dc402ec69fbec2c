"""Unions: several methods in one adapter, and named methods that stand for a union."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from deltatune.core.errors import DeltatuneError
from deltatune.core.method import REGISTRY, Method, View
from deltatune.core.sites.site import Site, Sites

MAX_MEMBERS = 64
"""Methods in one union."""


@dataclass(frozen=True, repr=False)
class Union(Method):
    """Several methods at once in one adapter: `LoRA(r=8) + Prefix(length=30)`. Changes at one site add up."""

    members: tuple[Method, ...] = ()

    def check(self) -> None:
        if len(self.members) > MAX_MEMBERS:
            raise DeltatuneError(f"a union of {len(self.members):,} methods: at most {MAX_MEMBERS} make a union")

    @property
    def parts(self) -> tuple[Method, ...]:
        return tuple(part for member in self.members for part in member.parts)

    @property
    def view(self) -> View:  # type: ignore[override]
        """The facts of all members."""
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

    def without_reparametrisation(self) -> Method:
        return Union(tuple(member.without_reparametrisation() for member in self.members))

    def with_token_ids(self, tokenize: Callable[[str], Sequence[int]], labels: Sequence[str]) -> Method:
        return Union(tuple(member.with_token_ids(tokenize, labels) for member in self.members))

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


def join(*methods: Method) -> Union:
    """The union of methods; unions among them are taken apart."""
    return Union(tuple(member for m in methods for member in (m.members if isinstance(m, Union) else (m,))))


@dataclass(frozen=True)
class Compound(Method):
    """A method of a paper that is a union of others, with fields of its own."""

    @property
    def union(self) -> Method:
        """The methods that it stands for."""
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
