"""Short globs for lists of sites, so that a method that was read or computed has a text one can read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from deltatune.core.sites import Kind, Sites, generic


def brief(names: Sequence[str], sites: Sites, kinds: Sequence[Kind]) -> tuple[str, ...]:
    """Globs that match just these sites: `layers.*.attn.q` for all of a kind, the full names otherwise."""
    wanted = set(names)
    found: list[str] = []
    for pattern in dict.fromkeys(generic(name) for name in names):
        matched = {site.name for site in sites.match(pattern, kinds=kinds)}
        found += [pattern] if matched <= wanted else [name for name in names if generic(name) == pattern]
    return tuple(found)


def common_rank(ranks: Mapping[str, int]) -> tuple[int, dict[str, int]]:
    """The rank that most sites have, and those of the others."""
    r = Counter(ranks.values()).most_common(1)[0][0]
    return r, {name: rank for name, rank in ranks.items() if rank != r}


def brief_ranks(odd: Mapping[str, int], ranks: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    """Pairs of a glob and a rank for `LoRA(ranks=...)`, where `ranks` are those of all sites of the method."""
    found: dict[str, int] = {}
    for name, rank in odd.items():
        alike = {ranks[other] for other in ranks if generic(other) == generic(name)}
        found[generic(name) if len(alike) == 1 else name] = rank
    return tuple(found.items())
