"""Adding up trained adapters: by what they do to the weights, ΔW, not by the factors they are stored as.

The sum of two LoRA is a LoRA of both ranks, exactly. What is no sum of factors any more (TIES, DARE, a smaller rank) is
brought to a rank, and the error that this makes is part of the result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from deltatune.core.adapter import Adapter
from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.core.host import Host
from deltatune.store.adapter_folder import combined_head
from deltatune.store.arithmetic.delta_weights import Change, changes_of
from deltatune.store.arithmetic.summed_deltas import Recipe, Sums, gathered, summed
from deltatune.store.arithmetic.ties_dare import Scope
from deltatune.store.tensors import attach_filled

How = Literal["linear", "svd", "ties", "dare", "dare_ties"]
PAPER_DENSITY = 0.2
"""Share of the entries that TIES keeps in its paper."""


@dataclass(frozen=True)
class Combined:
    """The adapter that came out, and what bringing it to its form has cost."""

    adapter: Adapter
    error: float
    """‖ΔW − what is stored‖ / ‖ΔW‖ over all sites, Frobenius norms; 0 where the form is exact."""
    errors: dict[str, float]
    """The same at each site that was brought to a rank."""


def combine(
    host: Host,
    name: str,
    weights: Mapping[str, float],
    how: How = "linear",
    *,
    rank: int | Literal["full"] | None = None,
    density: float | None = None,
    scale: float = 1.0,
    scope: Scope = "model",
    head: str | Literal[False] | None = None,
    seed: int = 0,
) -> Combined:
    """Attach a new adapter made of attached ones, `{"a": 0.5, "b": 0.5}`; a negative weight takes one away.

    `linear`: Σ wᵢ ΔWᵢ. Without `rank` it is exact: LoRA of the ranks' sum, biases and scales element by element.
    `svd`: the same at the rank given, by default the largest there is. `ties`: the wᵢ ΔWᵢ are trimmed to their largest
    entries (a share `density`, over the whole model or with `scope="tensor"` in each), signs are elected, and those
    that agree averaged. `dare`: entries are dropped at random so that a share `density` stays, and the rest grows by
    1/density; `dare_ties` elects and averages instead of adding. All is multiplied by `scale` at the end.

    `rank`: what ΔW is brought to where it has no exact form; `"full"` keeps it whole, as a LoRA of full rank.
    `head`: the adapter whose task head to take, `"mean"` for the weighted mean, False for none.
    Raises DeltatuneError for adapters without a weight form, and where a choice is needed.
    """
    chosen = {one: float(weight) for one, weight in weights.items()}
    recipe = _recipe(host, chosen, how, rank, density, scale, scope, seed)
    with host.using(None):  # the base's own weights must be in place
        changes = changes_of(host, chosen)
        raise_all(_unclear(changes, recipe))
        sums = summed(host, changes, recipe) if _exact(changes, recipe) else gathered(host, changes, recipe)
        return _attached(host, name, chosen, recipe, sums, head)


def _recipe(
    host: Host,
    weights: Mapping[str, float],
    how: str,
    rank: int | str | None,
    density: float | None,
    scale: float,
    scope: str,
    seed: int,
) -> Recipe:
    """The options, checked."""
    have = ", ".join(host.adapters) or "none"
    problems = [
        f"no adapter is called {one!r}{nearest(one, host.adapters)}; attached: {have}"
        for one in weights
        if one not in host.adapters
    ]
    problems += [f"the weight of {one!r} is {weight}" for one, weight in weights.items() if not math.isfinite(weight)]
    if not weights:
        problems.append('name the adapters and their weights: {"a": 0.5, "b": 0.5}')
    if how not in ("linear", "svd", "ties", "dare", "dare_ties"):
        problems.append(f"how={how!r}: it is one of linear, svd, ties, dare, dare_ties{nearest(how, ['ties', 'dare'])}")
    if scope not in ("model", "tensor"):
        problems.append(f"scope={scope!r}: it is model or tensor")
    if not (rank is None or rank == "full" or (type(rank) is int and rank >= 1)):
        problems.append(f"rank={rank!r}: it is a number from 1, or 'full'")
    if how in ("linear", "svd") and density is not None:
        problems.append(f"density={density}: {how} keeps every entry; ties, dare and dare_ties take a density")
    if how == "ties" and density is None:
        density = PAPER_DENSITY
    if how in ("dare", "dare_ties") and density is None:
        problems.append(f"{how} needs a density, the share of entries that stay, such as density=0.5")
    if density is not None and not 0 < density <= 1:
        problems.append(f"density={density}: it must be above 0 and at most 1")
    if not math.isfinite(scale):
        problems.append(f"scale={scale}")
    raise_all(problems, "cannot combine:" if len(problems) > 1 else "")
    return Recipe(how, rank, density or 1.0, scale, scope, seed)  # type: ignore[arg-type]


def _exact(changes: list[Change], recipe: Recipe) -> bool:
    """Whether the result has the forms of its parts, without matrices being written out."""
    forms = {change.form for change in changes}
    vectors = forms <= {"bias", "scaling", "weight"}
    if recipe.rank is not None or recipe.how == "svd":
        return False
    return vectors or (recipe.how == "linear" and "matrix" not in forms)


def _unclear(changes: list[Change], recipe: Recipe) -> list[str]:
    """What the user must still say."""
    forms = {change.form for change in changes}
    kinds = ", ".join(sorted({type(change.delta).__name__ for change in changes}))
    if not changes:
        return ["these adapters change nothing but heads"]
    if (recipe.rank is not None or recipe.how == "svd") and forms <= {"bias", "scaling"}:
        return [f"{kinds} are vectors, which add up exactly and have no rank; leave rank and svd out"]
    if "weight" in forms and len(forms) > 1 and recipe.rank is None:
        return [f"{kinds}: whole weights and changes of weights add up only at a rank; say rank=8, say, or rank='full'"]
    if recipe.how == "svd" and recipe.rank is None and "low_rank" not in forms:
        return [f"svd of {kinds} needs a rank: say rank=8, or rank='full'"]
    if recipe.rank is None and recipe.how != "svd" and not _exact(changes, recipe):
        return [f"{recipe.how} of {kinds} has no exact small form; say the rank of the result, rank=8, or rank='full'"]
    return []


def _attached(
    host: Host, name: str, weights: Mapping[str, float], recipe: Recipe, sums: Sums, head: str | Literal[False] | None
) -> Combined:
    """Attach the result, with its head and where it came from."""
    adapters = {one: host.adapters[one] for one in weights}
    kept, tensors, source = combined_head(adapters, weights, head)
    extra: dict[str, Any] = dict(adapters[source].extra) if source else _in_common(adapters)
    extra.pop("scores", None)  # they are another adapter's
    extra["combined"] = {
        **recipe.to_json(),
        "of": {one: {"weight": weights[one], "method": repr(adapters[one].method)} for one in weights},
        "error": sums.error,
    }
    if sums.method is None:
        raise DeltatuneError("nothing is left to attach: the changes cancel out or every entry was dropped")
    adapter = attach_filled(
        host, name, sums.method, {**sums.tensors, **tensors}, f"cannot attach {name!r}:", head=kept, extra=extra
    )
    adapter.eval()
    return Combined(adapter, sums.error, sums.errors)


def _in_common(adapters: Mapping[str, Adapter]) -> dict[str, Any]:
    """What all adapters remember alike."""
    first, *others = [adapter.extra for adapter in adapters.values()]
    return {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}
