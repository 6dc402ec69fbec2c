"""The weighted sum of Deltas as a method and its tensors: exact form by form, or as matrices brought to a rank."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from deltatune.core.delta import generator_for
from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.host import Host
from deltatune.core.method import Method
from deltatune.core.registry import registry
from deltatune.core.sites.site import Site, brief, brief_ranks, common_rank
from deltatune.core.union import Union
from deltatune.store.arithmetic.delta_terms import DeltaTerm, target_site, widen_slice
from deltatune.store.arithmetic.ties_dare import Scope, disjoint_mean, drop_and_rescale, elect_signs, ties, trim

How = Literal["linear", "svd", "ties", "dare", "dare_ties"]
Key = tuple[str, str]
"""Names of a site and of a parameter."""


@dataclass(frozen=True)
class CombineOptions:
    """How adapters are combined."""

    how: How
    rank: int | Literal["full"] | None
    density: float
    scale: float
    scope: Scope
    seed: int

    def to_json(self) -> dict[str, Any]:
        """The options as plain data."""
        return dataclasses.asdict(self)


@dataclass
class CombinedTensors:
    """The method of the sum, its tensors by their names in the adapter, and relative errors by site and in total."""

    method: Method | None = None
    tensors: dict[str, Tensor] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    error: float = 0.0

    def add_(self, method: Method, tensors: dict[str, Tensor]) -> None:
        """Add a method; its `tensors` have names that begin with the site."""
        self.method = method if self.method is None else Union((*self.method.parts, method))
        self.tensors |= {f"{type(method).__name__.lower()}.{name}": tensor for name, tensor in tensors.items()}


@dataclass(frozen=True)
class Factors:
    """ΔW = B A at one site: A (R, in), B (out, R)."""

    site: Site
    A: Tensor
    B: Tensor


@dataclass(frozen=True)
class Approximation:
    """Factors of a given rank, with the squared Frobenius norms of what they lose and of ΔW."""

    factors: Factors
    lost: float
    total: float


# ---- exact sums


def sum_exactly(host: Host, terms: Sequence[DeltaTerm], options: CombineOptions) -> CombinedTensors:
    """Sum form by form: factors are concatenated, vectors and whole weights added entry by entry."""
    combined = CombinedTensors()
    low_rank = _by_site([term for term in terms if term.form == "low_rank"])
    if low_rank:
        scales = {term.factors()[2] for site_terms in low_rank.values() for term in site_terms}
        _add_lora(combined, host, [concatenate(parts, options.scale) for parts in low_rank.values()], scales)
    for form, method, tensor in (("bias", "BitFit", "b"), ("scaling", "IA3", "l")):
        vectors = _by_site([term for term in terms if term.form == form])
        groups = {(name, form): site_terms for name, site_terms in vectors.items()}
        sums = combine_tensors(groups, options, lambda term, _: term.difference())
        if sums:
            sites = [site_terms[0].site for site_terms in vectors.values()]
            offset = 1.0 if form == "scaling" else 0.0
            tensors = {f"{name}.{tensor}": offset + change for (name, _), change in sums.items()}
            _add_vectors(combined, host, method, sites, tensors)
    weights = _by_site([term for term in terms if term.form == "weight"])
    if weights:
        groups = {(name, "value"): site_terms for name, site_terms in weights.items()}
        sums = combine_tensors(groups, options, lambda term, _: term.difference())
        _add_weights(combined, host, {name: change for (name, _), change in sums.items()})
    return combined


def concatenate(terms: Sequence[DeltaTerm], scale: float) -> Factors:
    """Σ wᵢ sᵢ Bᵢ Aᵢ as factors of rank Σ rᵢ: A = [A₁; A₂], B = [w₁s₁B₁, w₂s₂B₂]."""
    downs, ups = [], []
    for term in terms:
        a, b, s = term.factors()
        downs.append(a.double())
        ups.append(b.double() * (scale * term.weight * s))
    return Factors(terms[0].site, torch.cat(downs), torch.cat(ups, 1))


def combine_tensors(
    groups: Mapping[Key, list[DeltaTerm]], options: CombineOptions, change_of: Callable[[DeltaTerm, Key], Tensor]
) -> dict[Key, Tensor]:
    """Combine the adapters' changes of each tensor; an adapter that does not change a tensor counts as 0.

    `change_of(term, key)` gives the change of a tensor by one term. Raises DeltatuneError if DARE drops every entry.
    """
    adapters = list(dict.fromkeys(term.adapter for terms in groups.values() for term in terms))
    stacks: dict[Key, list[Tensor]] = {}
    dropped = []
    for key, terms in groups.items():
        changes: dict[str, Tensor] = {}
        for term in terms:
            change = change_of(term, key)
            changes[term.adapter] = changes[term.adapter] + change if term.adapter in changes else change
        if options.how.startswith("dare"):
            changes = {
                name: drop_and_rescale(
                    change, options.density, generator_for(options.seed, f"{name}/{key[0]}.{key[1]}")
                )
                for name, change in changes.items()
            }
        weights = {term.adapter: term.weight for term in terms}
        zero = torch.zeros_like(next(iter(changes.values())))
        stacks[key] = [weights[name] * changes[name] if name in changes else zero for name in adapters]
        dropped.append(options.how.startswith("dare") and not any(bool(change.any()) for change in changes.values()))
    if dropped and all(dropped):
        raise DeltatuneError(f"density={options.density}: {options.how} drops every entry of the changes; raise it")
    return {key: options.scale * change for key, change in _combine_stacks(stacks, options).items()}


def _combine_stacks(stacks: dict[Key, list[Tensor]], options: CombineOptions) -> dict[Key, Tensor]:
    if options.how in ("linear", "svd", "dare"):
        return {key: torch.stack(changes).sum(0) for key, changes in stacks.items()}
    if options.how == "dare_ties":
        return {key: disjoint_mean(changes, elect_signs(changes, "tensor")) for key, changes in stacks.items()}
    if options.scope == "tensor":
        return {key: ties(changes, options.density, "tensor") for key, changes in stacks.items()}
    if not stacks:
        return {}
    count = len(next(iter(stacks.values())))
    flat = [torch.cat([changes[i].flatten() for changes in stacks.values()]) for i in range(count)]
    trimmed = [trim(change, options.density) for change in flat]
    mean = disjoint_mean(trimmed, elect_signs(trimmed, "model"))
    parts = torch.split(mean, [changes[0].numel() for changes in stacks.values()])
    return {key: part.view_as(changes[0]) for part, (key, changes) in zip(parts, stacks.items(), strict=True)}


# ---- sums of matrices


def sum_as_matrices(host: Host, terms: Sequence[DeltaTerm], options: CombineOptions) -> CombinedTensors:
    """Sum as changes of whole matrices, brought to a rank, and of biases."""
    rank = options.rank or max(len(term.factors()[0]) for term in terms if term.form == "low_rank")
    combined = CombinedTensors()
    if options.how in ("linear", "svd") and all(term.form == "low_rank" for term in terms):
        factors = [concatenate(site_terms, options.scale) for site_terms in _by_site(terms).values()]
        approximations = [_approximate_factors(pair, rank) for pair in factors]  # ΔW is never computed
    else:
        sums, sites = _matrix_sums(host, terms, options)
        approximations = [
            _approximate_matrix(sites[site], change.T if sites[site].kind == "embed" else change, rank)
            for (site, name), change in sums.items()
            if name == "weight" and sites[site].kind in ("linear", "embed")
        ]
        _add_biases(combined, host, sums, sites)
    _record_errors(combined, approximations)
    if approximations:
        _add_lora(combined, host, [approximation.factors for approximation in approximations], set())
    return combined


def _matrix_sums(
    host: Host, terms: Sequence[DeltaTerm], options: CombineOptions
) -> tuple[dict[Key, Tensor], dict[str, Site]]:
    """Combine the change of each parameter, (out, in); also return the sites by name."""
    whole_modules = {term.site.module for term in terms if term.site.slice is None}
    groups: dict[Key, list[DeltaTerm]] = {}
    changes: dict[tuple[int, Key], Tensor] = {}
    sites: dict[str, Site] = {}
    for term in terms:
        for name, matrix in term.matrices().items():
            site, widen = target_site(host, term, whole_modules)
            key = (site.name, name)
            change = _as_out_in(term, site, matrix)
            changes[id(term), key] = widen_slice(change, term.site, site.width_out) if widen else change
            groups.setdefault(key, []).append(term)
            sites[site.name] = site
    raise_all(_product_problems(groups))
    return combine_tensors(groups, options, lambda term, key: changes[id(term), key]), sites


def _as_out_in(term: DeltaTerm, site: Site, matrix: Tensor) -> Tensor:
    """A whole weight (kind `weight`) as (out, in)."""
    transpose = term.site.kind == "weight" and site.transposed and matrix.dim() == 2
    return matrix.T if transpose else matrix


def _product_problems(groups: Mapping[Key, list[DeltaTerm]]) -> list[str]:
    """Modules whose input is scaled and whose weight changes: the two changes multiply, also unmerged."""
    return [
        f"the input of {site} is scaled and its weight changed ({', '.join(repr(term.adapter) for term in terms)}): "
        "the two multiply, which is not a sum; without a rank they stay separate"
        for (site, _), terms in groups.items()
        if len(terms) > 1 and {term.site.kind == "input" for term in terms} == {True, False}
    ]


def _add_biases(combined: CombinedTensors, host: Host, sums: Mapping[Key, Tensor], sites: Mapping[str, Site]) -> None:
    """Add the changes of biases. Raises DeltatuneError for other vectors, which a low-rank adapter cannot hold."""
    vectors = {(site, name): change for (site, name), change in sums.items() if change.any()}
    vectors = {
        key: change
        for key, change in vectors.items()
        if key[1] != "weight" or sites[key[0]].kind not in ("linear", "embed")
    }
    lost = [f"{site}: the change of its {name} has no rank" for site, name in vectors if name != "bias"]
    raise_all(lost[:8], "only matrices can be brought to a rank:" if lost else "")
    if vectors:
        tensors = {f"{site}.b": change for (site, _), change in vectors.items()}
        _add_vectors(combined, host, "BitFit", [sites[site] for site, _ in vectors], tensors)


def _approximate_factors(pair: Factors, rank: int | str) -> Approximation:
    """The best approximation of B A of a rank: the SVD of B A from the QR decompositions of both."""
    if rank == "full":
        return _approximate_matrix(pair.site, pair.B @ pair.A, rank)
    (qb, rb), (qa, ra) = torch.linalg.qr(pair.B), torch.linalg.qr(pair.A.T)
    u, s, vh = torch.linalg.svd(rb @ ra.T, full_matrices=False)
    return _truncate(pair.site, qb @ u, s, vh @ qa.T, int(rank))


def _approximate_matrix(site: Site, matrix: Tensor, rank: int | str) -> Approximation:
    """The best approximation of a matrix (out, in) of a rank; "full" keeps the matrix beside an identity."""
    if rank == "full":
        rows, columns = matrix.shape
        identity = torch.eye(min(rows, columns), dtype=matrix.dtype, device=matrix.device)
        pair = Factors(site, *((identity, matrix) if columns <= rows else (matrix, identity)))
        return Approximation(pair, 0.0, float(matrix.square().sum()))
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return _truncate(site, u, s, vh, int(rank))


def _truncate(site: Site, u: Tensor, s: Tensor, vh: Tensor, rank: int) -> Approximation:
    """Keep the `rank` largest singular values, split evenly between A and B."""
    squares, root = s.square(), s[:rank].sqrt()
    pair = Factors(site, root.unsqueeze(1) * vh[:rank], u[:, :rank] * root)
    return Approximation(pair, float(squares[rank:].sum()), float(squares.sum()))


def _record_errors(combined: CombinedTensors, approximations: Sequence[Approximation]) -> None:
    """Store the relative error of each site and of the whole."""
    combined.errors = {a.factors.site.name: math.sqrt(a.lost / a.total) if a.total else 0.0 for a in approximations}
    total = sum(a.total for a in approximations)
    combined.error = math.sqrt(sum(a.lost for a in approximations) / total) if total else 0.0


# ---- methods of the sum


def _add_lora(combined: CombinedTensors, host: Host, pairs: Sequence[Factors], scales: set[float]) -> None:
    """Add a LoRA of these factors. If all terms have one scale, it becomes the LoRA's, so that B keeps its values."""
    ranks = {pair.site.name: len(pair.A) for pair in pairs}
    r, exceptions = common_rank(ranks)
    alpha = r * next(iter(scales)) if len(scales) == 1 else float(r)
    names = brief(list(ranks), host.sites, ("linear", "embed"))
    method = registry()["LoRA"](r=r, alpha=alpha, sites=names, ranks=brief_ranks(exceptions, ranks))
    tensors: dict[str, Tensor] = {}
    for pair in pairs:
        scale = alpha / len(pair.A)
        tensors |= {f"{pair.site.name}.A": pair.A, f"{pair.site.name}.B": pair.B / scale}
    combined.add_(method, tensors)


def _add_vectors(
    combined: CombinedTensors, host: Host, method: str, sites: Sequence[Site], tensors: dict[str, Tensor]
) -> None:
    """Add a BitFit or an IA3 of these tensors."""
    kinds: tuple[Any, ...] = ("linear", "norm") if method == "BitFit" else ("linear", "input")
    options: dict[str, Any] = {"sites": brief([site.name for site in sites], host.sites, kinds)}
    if method == "BitFit" and not all(site.bias for site in sites):
        options["missing"] = "add"
    combined.add_(registry()[method](**options), tensors)


def _add_weights(combined: CombinedTensors, host: Host, changes: Mapping[str, Tensor]) -> None:
    """Add whole weights: of the fewest top layers that contain all changes. Unchanged weights are the base's."""
    deepest = max(site.depth for site in host.sites.weights.values())
    candidates = [registry()["Unfreeze"](layers=layers) for layers in [*range(1, deepest + 1), None]]
    method = next(m for m in candidates if changes.keys() <= {site.name for site in m.pick(host.sites)})
    values = {}
    for site in method.pick(host.sites):
        value = host.base.tensor(site.name).detach()
        values[f"{site.name}.value"] = value.double() + changes[site.name] if site.name in changes else value
    combined.add_(method, values)


def _by_site(terms: Sequence[DeltaTerm]) -> dict[str, list[DeltaTerm]]:
    groups: dict[str, list[DeltaTerm]] = {}
    for term in terms:
        groups.setdefault(term.site.name, []).append(term)
    return groups
