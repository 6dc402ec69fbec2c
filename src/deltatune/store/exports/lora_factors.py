"""An adapter as plain LoRA: for each map of the base a pair (A, B) of one rank with ΔW = s·BA, or why it has none.

Methods that are low-rank keep their factors. What else merges exactly has a change ΔW, and the singular value
decomposition gives the factors of the smallest rank that keeps it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deltatune.core.errors import DeltatuneError
from deltatune.core.host import Host
from deltatune.core.sites.fused_projections import put
from deltatune.core.sites.site import Site
from deltatune.store.arithmetic.delta_terms import DeltaTerm, delta_terms, target_site
from deltatune.store.tensors import not_finite

EXACT = 1e-5
"""Largest share of ΔW, in the Frobenius norm, that a conversion may lose and still count as exact: rounding."""


class NoLoRAForm(DeltatuneError):
    """An adapter changes something that no LoRA can hold."""

    def __init__(self, reasons: Sequence[str]) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = list(reasons)


@dataclass(frozen=True)
class LoRAFactors:
    """An adapter as LoRA: ΔW = scale · B A for each module of the base."""

    pairs: Mapping[str, tuple[Tensor, Tensor]]
    """(A (R, in), B (out, R)) by the path of the module, in float32, all of one rank R."""
    sites: Mapping[str, Site]
    """The site of each whole module."""
    rank: int
    scale: float
    """alpha / rank."""
    error: float
    """‖lost‖ / ‖ΔW‖ over all modules: 0 where the factors are those of the adapter."""
    converted: tuple[str, ...] = ()
    """Methods whose change had to be decomposed."""


def lora_obstacles(host: Host, name: str) -> list[str]:
    """Why an adapter has no LoRA form, from what it is: methods without a weight form, changed norms, inputs scaled
    beside changed weights. Biases are found when the changes are computed."""
    adapter = host.adapters[name].without_reparametrisation()
    entries = [(key, site, delta) for key, site, delta in adapter.entries() if site.kind != "head"]
    stuck = sorted({adapter.method_at(key) for key, _, delta in entries if not delta.capabilities.merges})
    if stuck:
        return [f"{method} acts on activations and has no change of a weight" for method in stuck]
    problems = []
    norms = sorted({site.name for _, site, _ in entries if site.kind == "norm" or _vector(host, site)})
    if norms:
        problems.append(f"{_some(norms)}: a vector of the base is changed, and LoRA changes matrices only")
    modules: dict[str, set[str]] = {}
    for _, site, _ in entries:
        modules.setdefault(site.module, set()).add("input" if site.kind == "input" else "weight")
    mixed = [path for path, kinds in modules.items() if len(kinds) > 1]
    if mixed:
        problems.append(f"{_some(mixed)}: the input is scaled and the weight changed, which is no sum of changes")
    return problems


def lora_factors(host: Host, name: str, weight: float = 1.0, rank: int = 64, bound: float = EXACT) -> LoRAFactors:
    """The adapter's changes times `weight` as pairs of one rank. The base is not changed.

    Changes that are not low-rank by their form are decomposed, to at most `rank` and so that at most the share `bound`
    of each is lost. Raises NoLoRAForm with every reason why that cannot be.
    """
    damaged = not_finite(dict(host.adapters[name].named_parameters()))
    problems = [*lora_obstacles(host, name), *damaged[:3]]
    if problems:
        raise NoLoRAForm(problems)
    with host.using(None):  # weights that adapters stand in for are the base's own then
        return _factors(host, delta_terms(host, {name: weight}), weight, rank, bound)


def beyond_range(factors: LoRAFactors, dtype: torch.dtype) -> list[str]:
    """The modules whose factors are too large for a type of numbers."""
    paths = [path for path, pair in factors.pairs.items() if not all(each.to(dtype).isfinite().all() for each in pair)]
    kind = str(dtype).removeprefix("torch.")
    return [f"{_some(paths)}: values beyond the range of {kind}; choose another dtype or weight"] if paths else []


# ---- inside


@torch.no_grad()
def _factors(host: Host, terms: Sequence[DeltaTerm], weight: float, rank: int, bound: float) -> LoRAFactors:
    by_module: dict[str, list[DeltaTerm]] = {}
    for term in terms:
        by_module.setdefault(_module(term.site), []).append(term)
    scales = {term.factors()[2] for term in terms if term.form == "low_rank"}
    kept = len(scales) == 1 and weight == 1.0 and all(term.form == "low_rank" for term in terms)
    scale = next(iter(scales)) if kept else 1.0  # B keeps its bits where all modules have one scale
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    sites: dict[str, Site] = {}
    lost, total, converted, problems = 0.0, 0.0, set[str](), list[str]()
    beyond: dict[str, list[int]] = {}
    for path, parts in by_module.items():
        site = _whole(host, parts[0])
        sites[path] = site
        low_rank = all(term.form == "low_rank" for term in parts)
        if low_rank:
            a, b = _concatenated(parts, site, 1.0 if kept else None)
        if low_rank and len(a) > min(a.shape[1], b.shape[0]):  # more factors than the matrix has directions
            a, b, gone, norm = _decomposed(b.double() @ a.double(), bound)
            lost, total = lost + gone, total + norm
            converted |= {term.method for term in parts}
        elif not low_rank:
            change, biases = _matrix(parts, site)
            problems += biases
            a, b, gone, norm = _decomposed(change, bound)
            lost, total = lost + gone, total + norm
            converted |= {term.method for term in parts}
        for method in {term.method for term in parts} & converted if len(a) > rank else ():
            beyond.setdefault(method, []).append(len(a))
        pairs[path] = (a, b)
    problems += [
        f"the change of {method} has a rank of up to {max(ranks)} ({len(ranks)} of {len(by_module)} modules), and "
        f"--rank (rank=) allows {rank}"
        for method, ranks in sorted(beyond.items())
    ]
    if not pairs:
        problems.append("the adapter changes no matrix of the base")
    if problems:
        more = [f"and {len(problems) - 6} more of this kind"] if len(problems) > 6 else []
        raise NoLoRAForm([*problems[:6], *more])
    most = max(max(len(a) for a, _ in pairs.values()), 1)
    padded = {path: _padded(a, b, most) for path, (a, b) in pairs.items()}
    error = math.sqrt(lost / total) if total else 0.0
    return LoRAFactors(padded, sites, most, float(scale), error, tuple(sorted(converted)))


def _vector(host: Host, site: Site) -> bool:
    """Whether a site is a vector of the base: a bias or a norm's weight."""
    return site.kind == "weight" and host.base.tensor(site.name).dim() != 2


def _module(site: Site) -> str:
    return site.path.removesuffix(".weight") if site.kind == "weight" else site.module


def _whole(host: Host, term: DeltaTerm) -> Site:
    """The site of the whole map that a term changes."""
    path = _module(term.site)
    for site in host.sites.values():
        if site.module == path and site.kind in ("linear", "embed") and site.slice is None:
            return site
    return target_site(host, term, {term.site.module})[0]


def _concatenated(terms: Sequence[DeltaTerm], site: Site, factor: float | None) -> tuple[Tensor, Tensor]:
    """Σ wᵢ sᵢ Bᵢ Aᵢ as A = [A₁; A₂] and B = [w₁s₁B₁, w₂s₂B₂]; slices stand in zeros of the whole map."""
    downs, ups = [], []
    for term in terms:
        a, b, s = term.factors()
        b = b.detach().float() * (term.weight * s if factor is None else factor)
        if term.site.slice is not None:
            b = put(b.new_zeros(b.shape[1], site.width_out), term.site.slice, b.T).T
        downs.append(a.detach().float())
        ups.append(b)
    return torch.cat(downs), torch.cat(ups, 1)


def _matrix(terms: Sequence[DeltaTerm], site: Site) -> tuple[Tensor, list[str]]:
    """The sum of the changes of one map (out, in) in float64, and problems: changes that no LoRA holds."""
    total: Tensor | None = None
    problems = []
    for term in terms:
        for name, matrix in term.matrices().items():
            if name == "bias" and bool(matrix.any()):
                problems.append(f"{term.site.name}: {term.method} changes a bias, and LoRA changes matrices only")
            if name == "bias":
                continue
            change = matrix.T if term.site.kind == "weight" and site.transposed else matrix
            if term.site.slice is not None:
                change = put(change.new_zeros(change.shape[1], site.width_out), term.site.slice, change.T).T
            change = (change.T if site.kind == "embed" else change) * term.weight
            total = change if total is None else total + change
    zeros = torch.zeros(site.width_out, site.width_in, dtype=torch.float64)
    return (zeros if total is None else total), problems


def _decomposed(change: Tensor, bound: float) -> tuple[Tensor, Tensor, float, float]:
    """(A, B) of the smallest rank that keeps all but `bound` of ΔW, and the squared norms of what is lost and of ΔW."""
    u, s, vh = torch.linalg.svd(change.double(), full_matrices=False)
    squares = s.square()
    total = float(squares.sum())
    tails = squares.flip(0).cumsum(0).flip(0)  # what is lost if the i largest are kept
    rank = int((tails > bound**2 * total).sum()) if total else 0
    root = s[:rank].sqrt()
    a, b = root[:, None] * vh[:rank], u[:, :rank] * root
    lost = float(tails[rank]) if rank < len(tails) else 0.0
    return a.float(), b.float(), lost, total


def _padded(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The same product with more rows of zeros in A and columns of zeros in B."""
    missing = rank - len(a)
    if not missing:
        return a.contiguous(), b.contiguous()
    return torch.cat([a, a.new_zeros(missing, a.shape[1])]), torch.cat([b, b.new_zeros(b.shape[0], missing)], 1)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
