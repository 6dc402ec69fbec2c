"""The sum of changes as a method and its tensors: exactly, form by form, or gathered as matrices and given a rank."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from deltatune.core.delta import generator_for
from deltatune.core.errors import raise_all
from deltatune.core.host import Host
from deltatune.core.method import Method, Union
from deltatune.core.registry import registry
from deltatune.core.sites.site import Site, brief, brief_ranks, common_rank
from deltatune.store.arithmetic.delta_weights import Change, place_of, widened
from deltatune.store.arithmetic.ties_dare import Scope, agreeing_mean, dropped, elected, largest, ties

Key = tuple[str, str]
"""A site's name and a parameter's."""


@dataclass(frozen=True)
class Recipe:
    """How to add up."""

    how: Literal["linear", "svd", "ties", "dare", "dare_ties"]
    rank: int | Literal["full"] | None
    density: float
    scale: float
    scope: Scope
    seed: int

    def to_json(self) -> dict[str, Any]:
        """The options as plain data."""
        return dataclasses.asdict(self)


@dataclass
class Sums:
    """A method and its tensors under the names of its adapter, and the errors made."""

    method: Method | None = None
    tensors: dict[str, Tensor] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    error: float = 0.0

    def add(self, method: Method, tensors: dict[str, Tensor]) -> None:
        """Add one method; `tensors` are named from the site on."""
        self.method = method if self.method is None else Union((*self.method.parts, method))
        self.tensors |= {f"{type(method).__name__.lower()}.{name}": tensor for name, tensor in tensors.items()}


@dataclass(frozen=True)
class Pair:
    """ΔW = B A at one site."""

    site: Site
    A: Tensor
    B: Tensor


def summed(host: Host, changes: Sequence[Change], recipe: Recipe) -> Sums:
    """Form by form: factors side by side, vectors and whole weights entry by entry."""
    found = Sums()
    low = _by_site([change for change in changes if change.form == "low_rank"])
    if low:
        _add_lora(found, host, [stacked(parts, recipe.scale) for parts in low.values()], low)
    for form, label, tensor in (("bias", "BitFit", "b"), ("scaling", "IA3", "l")):
        vectors = _by_site([change for change in changes if change.form == form])
        merged = merge({(name, form): parts for name, parts in vectors.items()}, recipe, lambda c, _: c.vector())
        if merged:
            sites = [parts[0].site for parts in vectors.values()]
            offset = 1.0 if form == "scaling" else 0.0
            add_vectors(found, host, label, sites, {f"{n}.{tensor}": offset + t for (n, _), t in merged.items()})
    weights = _by_site([change for change in changes if change.form == "weight"])
    if weights:
        merged = merge({(name, "value"): parts for name, parts in weights.items()}, recipe, lambda c, _: c.vector())
        _add_weights(found, host, {name: tensor for (name, _), tensor in merged.items()})
    return found


def stacked(parts: Sequence[Change], scale: float) -> Pair:
    """Σ wᵢ sᵢ Bᵢ Aᵢ as one pair of rank Σ rᵢ: A = [A₁; A₂], B = [w₁s₁B₁, w₂s₂B₂]."""
    downs, ups = [], []
    for part in parts:
        a, b, s = part.factors()
        downs.append(a.double())
        ups.append(b.double() * (scale * part.weight * s))
    return Pair(parts[0].site, torch.cat(downs), torch.cat(ups, 1))


def merge(groups: dict[Key, list[Change]], recipe: Recipe, take: Callable[[Change, Key], Tensor]) -> dict[Key, Tensor]:
    """The merged change of each tensor, of which `take` gives each adapter's; what one does not change counts as 0."""
    names = list(dict.fromkeys(change.adapter for parts in groups.values() for change in parts))
    stacks: dict[Key, list[Tensor]] = {}
    for key, parts in groups.items():
        each: dict[str, Tensor] = {}
        for change in parts:
            whole = take(change, key)
            each[change.adapter] = each[change.adapter] + whole if change.adapter in each else whole
        if recipe.how.startswith("dare"):
            each = {
                name: dropped(change, recipe.density, generator_for(recipe.seed, f"{name}/{key[0]}.{key[1]}"))
                for name, change in each.items()
            }
        weights = {change.adapter: change.weight for change in parts}
        nothing = torch.zeros_like(next(iter(each.values())))
        stacks[key] = [weights[name] * each[name] if name in each else nothing for name in names]
    return {key: recipe.scale * change for key, change in _merged(stacks, recipe).items()}


def _merged(stacks: dict[Key, list[Tensor]], recipe: Recipe) -> dict[Key, Tensor]:
    if recipe.how in ("linear", "svd", "dare"):
        return {key: torch.stack(each).sum(0) for key, each in stacks.items()}
    if recipe.how == "dare_ties":
        return {key: agreeing_mean(each, elected(each, "tensor")) for key, each in stacks.items()}
    if recipe.scope == "tensor":
        return {key: ties(each, recipe.density, "tensor") for key, each in stacks.items()}
    if not stacks:
        return {}
    flat = [torch.cat([each[i].flatten() for each in stacks.values()]) for i in range(len(next(iter(stacks.values()))))]
    trimmed = [largest(change, recipe.density) for change in flat]
    mean = agreeing_mean(trimmed, elected(trimmed, "model"))
    parts = torch.split(mean, [each[0].numel() for each in stacks.values()])
    return {key: part.view_as(each[0]) for part, (key, each) in zip(parts, stacks.items(), strict=True)}


def gathered(host: Host, changes: Sequence[Change], recipe: Recipe) -> Sums:
    """As changes of whole matrices, brought to a rank, and of biases."""
    linear = recipe.how in ("linear", "svd")
    low = all(change.form == "low_rank" for change in changes)
    rank = recipe.rank or max(len(c.factors()[0]) for c in changes if c.form == "low_rank")
    found = Sums()
    if linear and low:  # never written out
        pairs = [stacked(parts, recipe.scale) for parts in _by_site(list(changes)).values()]
        cut = [_cut(pair, rank) for pair in pairs]
    else:
        whole = {c.site.module for c in changes if c.site.slice is None}
        groups: dict[Key, list[Change]] = {}
        pieces: dict[tuple[int, Key], Tensor] = {}
        places: dict[str, Site] = {}
        for change in changes:
            for name, tensor in change.matrices().items():
                site, widen = place_of(host, change, name, whole)
                key = (site.name, name)
                tensor = _oriented(change, site, tensor)
                pieces[id(change), key] = widened(tensor, change.site, site.width_out) if widen else tensor
                groups.setdefault(key, []).append(change)
                places[site.name] = site
        raise_all(_products(groups))
        merged = merge(groups, recipe, lambda change, key: pieces[id(change), key])
        cut = [
            _dense(places[site], tensor.T if places[site].kind == "embed" else tensor, rank)
            for (site, name), tensor in merged.items()
            if name == "weight" and places[site].kind in ("linear", "embed")
        ]
        _rest(found, host, merged, places)
    _note(found, cut)
    if cut:
        _add_lora(found, host, [pair for pair, _, _ in cut], None)
    return found


def _oriented(change: Change, site: Site, tensor: Tensor) -> Tensor:
    """A whole weight (kind `weight`) as (out, in)."""
    turn = change.site.kind == "weight" and site.transposed and tensor.dim() == 2
    return tensor.T if turn else tensor


def _products(groups: dict[Key, list[Change]]) -> list[str]:
    """Modules that are scaled at their input and changed elsewhere: those changes multiply, also live."""
    return [
        f"the input of {site} is scaled and its weight changed ({', '.join(repr(c.adapter) for c in parts)}): that "
        "multiplies and is no sum; without a rank both stay apart"
        for (site, _), parts in groups.items()
        if len(parts) > 1 and {change.site.kind == "input" for change in parts} == {True, False}
    ]


def _rest(found: Sums, host: Host, merged: dict[Key, Tensor], places: dict[str, Site]) -> None:
    """The changes that are no matrices: biases are kept, others have no place in a low-rank adapter."""
    vectors = {(site, name): tensor for (site, name), tensor in merged.items() if tensor.any()}
    vectors = {
        key: t for key, t in vectors.items() if key[1] != "weight" or places[key[0]].kind not in ("linear", "embed")
    }
    lost = [f"{site}: its {name} changes, which has no rank" for site, name in vectors if name != "bias"]
    raise_all(lost[:8], "cannot bring to a rank what is no matrix:" if lost else "")
    if vectors:
        sites = [places[site] for site, _ in vectors]
        add_vectors(found, host, "BitFit", sites, {f"{site}.b": tensor for (site, _), tensor in vectors.items()})


def _cut(pair: Pair, rank: int | str) -> tuple[Pair, float, float]:
    """The best approximation of a rank, with ‖ΔW − it‖² and ‖ΔW‖²; the SVD of B A from QR of both."""
    if rank == "full":
        return _dense(pair.site, pair.B @ pair.A, rank)
    (qb, rb), (qa, ra) = torch.linalg.qr(pair.B), torch.linalg.qr(pair.A.T)
    u, s, vh = torch.linalg.svd(rb @ ra.T, full_matrices=False)
    return _kept(pair.site, qb @ u, s, vh @ qa.T, int(rank))


def _dense(site: Site, matrix: Tensor, rank: int | str) -> tuple[Pair, float, float]:
    """The same of a matrix (out, in); at full rank the matrix itself beside an identity."""
    if rank == "full":
        rows, columns = matrix.shape
        one = torch.eye(min(rows, columns), dtype=matrix.dtype, device=matrix.device)
        return Pair(site, *((one, matrix) if columns <= rows else (matrix, one))), 0.0, float(matrix.square().sum())
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return _kept(site, u, s, vh, int(rank))


def _kept(site: Site, u: Tensor, s: Tensor, vh: Tensor, rank: int) -> tuple[Pair, float, float]:
    squares, root = s.square(), s[:rank].sqrt()
    pair = Pair(site, root.unsqueeze(1) * vh[:rank], u[:, :rank] * root)
    return pair, float(squares[rank:].sum()), float(squares.sum())


def _note(found: Sums, cut: Sequence[tuple[Pair, float, float]]) -> None:
    """Relative errors, at each site and over all."""
    found.errors = {pair.site.name: math.sqrt(lost / all_) if all_ else 0.0 for pair, lost, all_ in cut}
    total = sum(all_ for _, _, all_ in cut)
    found.error = math.sqrt(sum(lost for _, lost, _ in cut) / total) if total else 0.0


def _add_lora(found: Sums, host: Host, pairs: Sequence[Pair], of: dict[str, list[Change]] | None) -> None:
    """A LoRA of these pairs; where all parts had one scale, it keeps it, so that B is what it was."""
    ranks = {pair.site.name: len(pair.A) for pair in pairs}
    r, odd = common_rank(ranks)
    scales = {c.factors()[2] for parts in (of or {}).values() for c in parts}
    alpha = r * scales.pop() if len(scales) == 1 else float(r)
    names = brief(list(ranks), host.sites, ("linear", "embed"))
    method = registry()["LoRA"](r=r, alpha=alpha, sites=names, ranks=brief_ranks(odd, ranks))
    tensors: dict[str, Tensor] = {}
    for pair in pairs:
        scale = alpha / len(pair.A)
        tensors |= {f"{pair.site.name}.A": pair.A, f"{pair.site.name}.B": pair.B / scale}
    found.add(method, tensors)


def add_vectors(found: Sums, host: Host, label: str, sites: Sequence[Site], tensors: dict[str, Tensor]) -> None:
    """A BitFit or an IA3 of these tensors."""
    kinds: tuple[Any, ...] = ("linear", "norm") if label == "BitFit" else ("linear", "input")
    options: dict[str, Any] = {"sites": brief([site.name for site in sites], host.sites, kinds)}
    if label == "BitFit" and not all(site.bias for site in sites):
        options["missing"] = "add"
    found.add(registry()[label](**options), tensors)


def _add_weights(found: Sums, host: Host, changes: dict[str, Tensor]) -> None:
    """Whole weights, of as few blocks from the top as hold them all; those that nobody changed are the base's."""
    deepest = max(site.depth for site in host.sites.weights.values())
    tries = [registry()["Unfreeze"](layers=layers) for layers in [*range(1, deepest + 1), None]]
    method = next(one for one in tries if changes.keys() <= {site.name for site in one.pick(host.sites)})
    base = dict(host.base_tensors())
    names = [site.name for site in method.pick(host.sites)]
    found.add(
        method,
        {f"{n}.value": base[n].detach().double() + changes[n] if n in changes else base[n].detach() for n in names},
    )


def _by_site(changes: Sequence[Change]) -> dict[str, list[Change]]:
    found: dict[str, list[Change]] = {}
    for change in changes:
        found.setdefault(change.site.name, []).append(change)
    return found
