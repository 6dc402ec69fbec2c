"""Ranks of single sites: `ranks=(("*.ffn.*", 4),)` beside a method's `r`, the first glob that matches counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.sites.site import Kind, Site, Sites, generic, matches


def check_ranks(method: Any) -> None:
    """Raise DeltatuneError unless the rank of each pair in a method's `ranks` is at least 1."""
    low = [glob for glob, rank in method.ranks if rank < 1]
    if low:
        raise DeltatuneError(
            f"{type(method).__name__}(ranks={method.ranks!r}): the rank at {low[0]!r} must be at least 1; write pairs "
            "such as (('*.ffn.*', 4),)"
        )


def ranked_sites(method: Any, sites: Sites, kinds: Sequence[Kind]) -> list[Site]:
    """The sites of a method. Raises DeltatuneError for globs of its `ranks` that match none of them."""
    picked = sites.match(method.sites, kinds=kinds)
    names = ", ".join(sorted({generic(site.name) for site in picked}))
    raise_all(
        [
            f"ranks: no site of this {type(method).__name__} matches {glob!r}; it is at {names}"
            for glob, _ in method.ranks
            if not any(matches(glob, site.name) for site in picked)
        ]
    )
    return picked


def rank_at(method: Any, site: Site) -> int:
    """The method's rank at one site."""
    return next((int(rank) for glob, rank in method.ranks if matches(glob, site.name)), int(method.r))


def scaled_ranks(method: Any, r: int) -> tuple[tuple[str, int], ...]:
    """The ranks of single sites where the method's own becomes r: in proportion to it, each at least 1."""
    return tuple((glob, max(1, round(rank * r / method.r))) for glob, rank in method.ranks)
