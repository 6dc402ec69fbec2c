"""Task arithmetic: combining trained adapters by their changes of the weights, ΔW, not by their factors.

Ilharco et al. 2023, https://arxiv.org/abs/2212.04089. The sum of two LoRA is a LoRA of the sum of their ranks, exactly.
Combinations without a low-rank form (TIES, DARE, a smaller rank) are brought to a rank, and the result says what error
that makes.
"""

from __future__ import annotations

import copy
import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor, nn

from deltatune.core.adapter import Adapter
from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.core.host import Host
from deltatune.core.input_validation.field_validation import shortened
from deltatune.core.route import unknown_adapters
from deltatune.core.trained_rows import rows_of_all
from deltatune.store.arithmetic.delta_terms import DeltaTerm, delta_terms
from deltatune.store.arithmetic.summed_deltas import CombinedTensors, CombineOptions, How, sum_as_matrices, sum_exactly
from deltatune.store.arithmetic.ties_dare import Scope
from deltatune.store.tensors import attach_filled

TIES_DENSITY = 0.2
"""Share of the entries that TIES keeps in its paper."""


@dataclass(frozen=True)
class Combined:
    """A combined adapter and its approximation error."""

    adapter: Adapter
    error: float
    """‖ΔW − stored ΔW‖ / ‖ΔW‖ over all sites, Frobenius norms; 0 if the form is exact."""
    errors: dict[str, float]
    """The same for each site that was brought to a rank."""


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
    """Attach a new adapter that combines attached ones, `{"a": 0.5, "b": 0.5}`; a negative weight subtracts.

    `linear`: Σ wᵢ ΔWᵢ. Without `rank` it is exact: a LoRA of the sum of the ranks, biases and scales element by
    element. `svd`: the same, truncated to `rank`, by default the largest rank of the adapters. `ties`: the wᵢ ΔWᵢ are
    trimmed to their largest entries (a share `density`, of the whole model or with `scope="tensor"` of each tensor),
    signs are elected, and the entries that agree averaged. `dare`: entries are dropped at random so that a share
    `density` stays, rescaled by 1/density; `dare_ties` elects and averages instead of adding. The result is multiplied
    by `scale`.

    `rank`: the rank of a result without an exact low-rank form; `"full"` keeps all of ΔW, as a LoRA of full rank.
    `head`: the adapter whose task head to take, `"mean"` for the weighted mean, False for none.
    Raises DeltatuneError for adapters without a weight form, and if an option is missing or does not apply.
    """
    raise_all([
        f"the weight of {name!r} is {shortened(weight)}, it must be a number"
        for name, weight in weights.items()
        if isinstance(weight, bool) or not isinstance(weight, numbers.Real)
    ])  # fmt: skip
    weights = {adapter: float(weight) for adapter, weight in weights.items()}
    options = _options(host, weights, how, rank, density, scale, scope, seed)
    with host.using(None):  # the base's own weights must be in place
        terms = delta_terms(host, weights)
        raise_all(_rank_problems(terms, options))
        combined = (sum_exactly if _is_exact(terms, options) else sum_as_matrices)(host, terms, options)
        return _attach(host, name, weights, options, combined, head)


def _options(
    host: Host,
    weights: Mapping[str, float],
    how: str,
    rank: int | str | None,
    density: float | None,
    scale: float,
    scope: str,
    seed: int,
) -> CombineOptions:
    """Check the options."""
    problems = unknown_adapters(weights, host.adapters)
    problems += [f"the weight of {name!r} is {weight}" for name, weight in weights.items() if not math.isfinite(weight)]
    if not weights:
        problems.append('name the adapters and their weights: {"a": 0.5, "b": 0.5}')
    if how not in get_args(How):
        problems.append(f"how={how!r}: it is one of {', '.join(get_args(How))}{nearest(how, ['ties', 'dare'])}")
    if scope not in get_args(Scope):
        problems.append(f"scope={scope!r}: it is model or tensor")
    if not (rank is None or rank == "full" or (type(rank) is int and rank >= 1)):
        problems.append(f"rank={rank!r}: it is a number from 1, or 'full'")
    if how in ("linear", "svd") and density is not None:
        problems.append(f"density={density}: {how} keeps every entry; ties, dare and dare_ties take a density")
    if scope != "model" and how != "ties":
        problems.append(f"scope={scope!r}: {how} does not trim; ties takes a scope")
    if seed and how not in ("dare", "dare_ties"):
        problems.append(f"seed={seed}: {how} draws nothing; dare and dare_ties take a seed")
    if how == "ties" and density is None:
        density = TIES_DENSITY
    if how in ("dare", "dare_ties") and density is None:
        problems.append(f"{how} needs a density, the share of entries to keep, such as density=0.5")
    if density is not None and not 0 < density <= 1:
        problems.append(f"density={density}: it must be above 0 and at most 1")
    if not math.isfinite(scale):
        problems.append(f"scale={scale}: it must be a finite number")
    raise_all(problems, "cannot combine:" if len(problems) > 1 else "")
    return CombineOptions(how, rank, density or 1.0, scale, scope, seed)  # type: ignore[arg-type]


def _is_exact(terms: Sequence[DeltaTerm], options: CombineOptions) -> bool:
    """Whether the result has the forms of its terms, so that no matrix is computed."""
    forms = {term.form for term in terms}
    vectors = forms <= {"bias", "scaling", "weight"}
    if options.rank is not None or options.how == "svd":
        return False
    return vectors or (options.how == "linear" and "matrix" not in forms)


def _rank_problems(terms: Sequence[DeltaTerm], options: CombineOptions) -> list[str]:
    """Ranks that are missing or do not apply."""
    forms = {term.form for term in terms}
    methods = ", ".join(sorted({term.method for term in terms}))
    if not terms:
        return ["these adapters change nothing but heads"]
    if (options.rank is not None or options.how == "svd") and forms <= {"bias", "scaling"}:
        return [f"the changes of {methods} are vectors, which add up exactly and have no rank; leave rank and svd out"]
    if "weight" in forms and len(forms) > 1 and options.rank is None:
        return [f"{methods}: whole weights and low-rank changes only add up at a rank; set rank=8, say, or rank='full'"]
    if options.how == "svd" and options.rank is None and "low_rank" not in forms:
        return [f"svd of {methods} needs a rank: set rank=8, say, or rank='full'"]
    if options.rank is None and options.how != "svd" and not _is_exact(terms, options):
        return [f"{options.how} of {methods} has no exact low-rank form; set a rank, such as rank=8, or rank='full'"]
    return []


def _attach(
    host: Host,
    name: str,
    weights: Mapping[str, float],
    options: CombineOptions,
    combined: CombinedTensors,
    head: str | Literal[False] | None,
) -> Combined:
    """Attach the result with its head and a record of its origin."""
    adapters = {adapter: host.adapters[adapter] for adapter in weights}
    module, head_tensors, source = combine_heads(adapters, weights, head)
    extra: dict[str, Any] = dict(adapters[source].extra) if source else _common_extra(adapters)
    extra.pop("scores", None)  # they are another adapter's
    extra["combined"] = {
        **options.to_json(),
        "of": {a: {"weight": weight, "method": repr(adapters[a].method)} for a, weight in weights.items()},
        "error": combined.error,
    }
    if combined.method is None:
        raise DeltatuneError("nothing is left to attach: the changes cancel out or every entry was dropped")
    tensors = {**combined.tensors, **head_tensors}
    adapter = attach_filled(host, name, combined.method, tensors, f"cannot attach {name!r}:", head=module, extra=extra)
    adapter.trained_rows = rows_of_all(each.trained_rows for each in adapters.values())
    adapter.eval()
    return Combined(adapter, combined.error, combined.errors)


def _common_extra(adapters: Mapping[str, Adapter]) -> dict[str, Any]:
    """The stored extra values that all adapters share."""
    first, *others = [adapter.extra for adapter in adapters.values()]
    return {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}


# ---- heads


def combine_heads(
    adapters: Mapping[str, Adapter], weights: Mapping[str, float], choice: str | Literal[False] | None
) -> tuple[nn.Module | Literal[False] | None, dict[str, Tensor], str | None]:
    """Return the head to attach (as `Host.attach` takes it), its tensors, and the adapter whose task it is for.

    `choice`: an adapter's name, `"mean"`, False for none, or None if at most one adapter has a head.
    """
    heads = {name: _head_tensors(adapter) for name, adapter in adapters.items()}
    owners = [name for name, tensors in heads.items() if tensors]
    if choice is False or (choice is None and not owners):
        return False, {}, None
    if choice is None:
        if len(owners) > 1:
            raise DeltatuneError(
                f"{', '.join(map(repr, owners))} have a head each; choose one with head={owners[0]!r}, "
                "head='mean' for the weighted mean, or head=False for none"
            )
        choice = owners[0]
    if choice in owners:
        return copy.deepcopy(adapters[choice].head), heads[choice], choice
    if choice == "mean" and owners:
        return copy.deepcopy(adapters[owners[0]].head), _mean_head(adapters, heads, weights, owners), owners[0]
    have = ", ".join(owners) or "none"
    raise DeltatuneError(f"head={choice!r}{nearest(choice, [*owners, 'mean'])}: adapters that have one: {have}")


def _head_tensors(adapter: Adapter) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in adapter.tensors().items() if key.startswith("head.")}


def _mean_head(
    adapters: Mapping[str, Adapter],
    heads: Mapping[str, Mapping[str, Tensor]],
    weights: Mapping[str, float],
    owners: Sequence[str],
) -> dict[str, Tensor]:
    """The weighted mean of heads of one shape and one task."""
    first, *others = owners
    for other in others:
        shapes = [{key: tensor.shape for key, tensor in heads[name].items()} for name in (first, other)]
        if shapes[0] != shapes[1] or type(adapters[first].head) is not type(adapters[other].head):
            raise DeltatuneError(f"the heads of {first!r} and {other!r} differ in shape; choose one by its name")
        if adapters[first].extra.get("task") != adapters[other].extra.get("task"):
            raise DeltatuneError(f"{first!r} and {other!r} were trained for different tasks; choose one head by name")
    total = sum(weights[name] for name in owners)
    if not total > 0:
        raise DeltatuneError(f"the weights of the heads sum to {total:g}, which has no mean; choose one by its name")
    return {key: sum(weights[n] / total * heads[n][key] for n in owners) for key in heads[first]}  # type: ignore[misc]
