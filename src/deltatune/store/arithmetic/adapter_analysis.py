"""Analysis of trained adapters: how large their changes are, how many directions they use, and how far two agree.

Singular values of low-rank changes come from their factors, so that ΔW of a large model is never computed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from deltatune.core.adapter import labelled_parts
from deltatune.core.delta import Delta
from deltatune.core.errors import DeltatuneError
from deltatune.core.host import Host
from deltatune.core.input_validation.regular_files import check_directory
from deltatune.core.sites.base_weights import BaseWeights
from deltatune.core.sites.fused_projections import take
from deltatune.core.sites.site import Site, Slice
from deltatune.store.adapter_folder import CONFIG, TENSORS, knows, method_from_json, read_config
from deltatune.store.arithmetic.delta_terms import FORMS, BaseParameters, DeltaTerm
from deltatune.store.tensors import read_tensors

VECTORS = ("bias", "scaling", "tensor")
"""Forms of changes that have no singular values."""


@dataclass(frozen=True)
class Change:
    """One adapter's change of one parameter at one site, in float64."""

    adapter: str
    site: str
    parameter: str
    """`weight` or `bias`; for methods without a weight form the name of their own tensor."""
    form: str
    """low_rank, bias, scaling, weight or matrix (dense), or tensor: a trained tensor as it is, not a change."""
    matrix: Tensor | None = None
    """ΔW (out, in), or a vector; None for a low-rank change."""
    factors: tuple[Tensor, Tensor] | None = None
    """(A, B) of a low-rank change ΔW = B A, A (r, in), B (out, r)."""
    base_norm: float | None = None
    """Frobenius norm of what is changed; None without the base."""
    place: tuple[str, Slice | None] = "", None
    """Path of the base's parameter, and the slice of it; empty where the base was not read."""

    @property
    def key(self) -> str:
        """What is changed, whatever the sites are called through which adapters change it."""
        return self.place[0] or f"{self.site}.{self.parameter}"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of ΔW."""
        if self.factors is not None:
            return self.factors[1].shape[0], self.factors[0].shape[1]
        assert self.matrix is not None
        return tuple(self.matrix.shape)

    @cached_property
    def svd(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """U (out, k), the singular values (k,), and Vᵀ (k, in); None for vectors and tensors."""
        if self.factors is not None:
            A, B = self.factors
            Qa, Ra = torch.linalg.qr(A.T)  # (in, r), (r, r)
            Qb, Rb = torch.linalg.qr(B)  # (out, r), (r, r)
            U, S, Vh = torch.linalg.svd(Rb @ Ra.T)
            return Qb @ U, S, Vh @ Qa.T
        if self.form in VECTORS or self.matrix is None or self.matrix.dim() != 2:
            return None
        U, S, Vh = torch.linalg.svd(self.matrix, full_matrices=False)
        return U, S, Vh

    @cached_property
    def norm(self) -> float:
        """Frobenius norm."""
        if self.factors is not None:
            A, B = self.factors
            return math.sqrt(max(0.0, float(((B.T @ B) * (A @ A.T)).sum())))
        assert self.matrix is not None
        return float(torch.linalg.vector_norm(self.matrix))

    @property
    def relative(self) -> float | None:
        """‖ΔW‖ / ‖W‖; None without the base."""
        return self.norm / self.base_norm if self.base_norm else None

    @property
    def singular_values(self) -> list[float] | None:
        """Descending; of a low-rank change as many as its rank allows."""
        return None if self.svd is None else [float(value) for value in self.svd[1]]

    @property
    def effective_rank(self) -> float | None:
        """exp of the entropy of σ / Σσ: Roy and Vetterli 2007, https://doi.org/10.5281/zenodo.40428."""
        values = self._positive()
        if values is None:
            return None
        shares = values / values.sum()
        return float(torch.exp(-(shares * shares.log()).sum()))

    @property
    def stable_rank(self) -> float | None:
        """‖ΔW‖²_F / σ₁²: Rudelson and Vershynin 2007, https://arxiv.org/abs/math/0503442."""
        values = self._positive()
        return None if values is None else float(values.square().sum() / values[0].square())

    def _positive(self) -> Tensor | None:
        if self.svd is None or not float(self.svd[1].max()) > 0:
            return None
        values = self.svd[1]
        return values[values > 0]


@dataclass(frozen=True)
class AdapterOverlap:
    """How far the changes of two adapters at one site agree."""

    adapters: tuple[str, str]
    site: str
    parameter: str
    cosine: float | None
    """⟨ΔW₁, ΔW₂⟩ / (‖ΔW₁‖ ‖ΔW₂‖); None where one of them is 0."""
    inputs: list[list[float]] | None
    """φ(i, j) of the directions that are read, i, j = 1, 2, ...: ‖V₁ᵢᵀ V₂ⱼ‖²_F / min(i, j), V of the first right
    singular vectors, from 0 (orthogonal) to 1 (one contains the other). Hu et al. 2021, section 7.2,
    https://arxiv.org/abs/2106.09685, there of A; here of ΔW, whose row space is A's."""
    outputs: list[list[float]] | None
    """The same of the directions that are written, the left singular vectors."""
    chance: tuple[float, float] | None
    """What φ(k, k) of random subspaces would be on average, k / width, of inputs and outputs."""


def changes_of(host: Host, name: str) -> list[Change]:
    """The changes of an attached adapter, heads last. Methods without a weight form give their trained tensors."""
    adapter = host.adapters[name].without_reparametrisation()
    changes: list[Change] = []
    with host.using(None), torch.no_grad():  # the base's own weights must be in place
        weights = BaseParameters(host)
        for key, site, delta in adapter.entries():
            if site.kind == "head" or not delta.capabilities.merges:
                changes += _own_tensors(name, key.partition(".")[2], dict(delta.named_parameters()))
                continue
            trained = frozenset(parameter for parameter, _ in delta.named_parameters())
            form = "weight" if site.kind == "weight" else FORMS.get(trained, "matrix")
            changes += _weight_changes(DeltaTerm(name, 1.0, site, delta, form, adapter.method_at(key)), weights)
        for label, shared in adapter.shared.items():
            changes += _own_tensors(name, label, dict(shared.named_parameters()))
        if adapter.head is not None:
            changes += _own_tensors(name, "head", dict(adapter.head.named_parameters()))
    return _added(changes)


def _weight_changes(term: DeltaTerm, weights: BaseParameters) -> Iterator[Change]:
    base: BaseWeights = term.delta.base
    norms = {name: _norm(tensor) for name, tensor in base.parameters().items()}
    if term.form == "low_rank":
        a, b, scale = term.factors()
        factors, place = (a.double(), b.double() * scale), weights.place(base, "weight")
        yield Change(term.adapter, term.site.name, "weight", "low_rank", None, factors, norms.get("weight"), place)
        return
    for parameter, matrix in term.matrices().items():
        place = weights.place(base, parameter)
        parts = weights.parts(place[0]) if term.form == "weight" else []
        for part, name in parts:  # under the names at which other methods change it
            there, old = part.oriented(matrix, name), _norm(part.parameters()[name])
            turned = there.T if part.site.kind == "embed" and there.dim() == 2 else there
            yield Change(term.adapter, part.site.name, name, "weight", turned, None, old, (place[0], part.site.slice))
        if not parts and (bool(matrix.any()) or parameter in ("weight", term.site.attribute)):
            turned = matrix.T if term.site.kind == "embed" and matrix.dim() == 2 else matrix
            yield Change(term.adapter, term.site.name, parameter, term.form, turned, None, norms.get(parameter), place)


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor.double()))


def _added(changes: Sequence[Change]) -> list[Change]:
    """The changes with those of one parameter at one site as their sum: several methods may change it together."""
    groups: dict[tuple[str, str, str], list[Change]] = {}
    for change in changes:
        own = str(len(groups)) if change.form == "tensor" else ""
        groups.setdefault((change.site, change.parameter, own), []).append(change)
    return [_sum(group) if len(group) > 1 else group[0] for group in groups.values()]


def _sum(changes: Sequence[Change]) -> Change:
    first = changes[0]
    factors = [change.factors for change in changes if change.factors is not None]
    if len(factors) == len(changes):
        together = torch.cat([A for A, _ in factors]), torch.cat([B for _, B in factors], dim=1)
        return replace(first, factors=together)
    form = first.form if len({change.form for change in changes}) == 1 else "matrix"
    return replace(first, form=form, factors=None, matrix=torch.stack([_dense(each) for each in changes]).sum(0))


def _own_tensors(name: str, site: str, tensors: Mapping[str, Tensor]) -> list[Change]:
    return [Change(name, site, key, "tensor", tensor.detach().double()) for key, tensor in tensors.items()]


def changes_in(folder: Path, name: str) -> list[Change]:
    """The changes of an adapter in a folder, without its base: low-rank ones, and the tensors of all others.

    Raises DeltatuneError for a folder that is not in deltatune's format.
    """
    check_directory(folder, "adapter")
    if not knows(folder):
        raise DeltatuneError(f"{folder} has no {CONFIG}; without the base only adapters in deltatune's format are read")
    parts = labelled_parts(method_from_json(read_config(folder)["method"], folder))
    groups: dict[tuple[str, str], dict[str, Tensor]] = {}
    for key, tensor in read_tensors(folder / TENSORS).items():
        path, _, parameter = key.rpartition(".")
        label, _, site = path.partition(".")
        groups.setdefault((label, site), {})[parameter] = tensor
    changes: list[Change] = []
    for (label, site), tensors in groups.items():
        delta = _built(parts[label], site, tensors) if label in parts and {"A", "B"} <= set(tensors) else None
        factors = None if delta is None else delta.low_rank_factors()
        if factors is not None:
            a, b, scale = factors
            changes.append(Change(name, site, "weight", "low_rank", None, (a.double(), b.double() * scale)))
        else:
            changes += _own_tensors(name, site or label, tensors)
    return _added(changes)


def _built(part: object, site: str, tensors: Mapping[str, Tensor]) -> Delta | None:
    """The Delta of a low-rank method with its tensors; None for methods that need the base, such as DoRA."""
    width_in, width_out = tensors["A"].shape[-1], tensors["B"].shape[0]
    delta: Delta = part.build(Site(site, "linear", "", "", width_in, width_out))  # type: ignore[attr-defined]
    if frozenset(name for name, _ in delta.named_parameters()) != frozenset("AB"):
        return None
    delta.load_state_dict(dict(tensors))
    return delta


def overlaps_of(first: Sequence[Change], second: Sequence[Change], most: int = 8) -> list[AdapterOverlap]:
    """Compare two adapters at every parameter that both change in the same shape; φ(i, j) for i, j up to `most`."""
    others = {(change.site, change.parameter): change for change in second}
    overlaps = []
    for one in first:
        other = others.get((one.site, one.parameter))
        if other is None or one.shape != other.shape or (one.form == "tensor") != (other.form == "tensor"):
            continue
        inputs = outputs = chance = None
        if one.svd is not None and other.svd is not None and one.norm and other.norm:
            k = min(most, _rank(one), _rank(other))
            inputs = _phi(one.svd[2].T, other.svd[2].T, min(most, _rank(one)), min(most, _rank(other)))
            outputs = _phi(one.svd[0], other.svd[0], min(most, _rank(one)), min(most, _rank(other)))
            chance = k / one.shape[1], k / one.shape[0]
        names = one.adapter, other.adapter
        overlaps.append(AdapterOverlap(names, one.site, one.parameter, cosine(one, other), inputs, outputs, chance))
    return overlaps


def cosine(one: Change, other: Change) -> float | None:
    """The cosine of two changes; None where one is 0."""
    size = one.norm * other.norm
    return product(one, other) / size if size > 0 else None


def product(one: Change, other: Change) -> float:
    """⟨ΔW₁, ΔW₂⟩: of factors tr((B₂ᵀ B₁)(A₁ A₂ᵀ)), without ΔW. A slice meets its part of the whole parameter."""
    cuts = one.place[1], other.place[1]
    if cuts[0] != cuts[1] and None not in cuts:
        return 0.0  # other entries of one fused projection
    if cuts[0] != cuts[1]:
        parts = [
            take(_dense(change).T, cuts[0] or cuts[1]).T if change.place[1] is None else _dense(change)
            for change in (one, other)
        ]
        return float((parts[0] * parts[1]).sum())
    if one.shape != other.shape:
        return 0.0  # the two sides of a tied weight
    if one.factors is not None and other.factors is not None:
        (A1, B1), (A2, B2) = one.factors, other.factors
        return float(((B1.T @ B2) * (A1 @ A2.T)).sum())
    return float((_dense(one) * _dense(other)).sum())


def total_cosine(first: Sequence[Change], second: Sequence[Change]) -> float | None:
    """The cosine of two adapters over all parameters of the base; what only one of them changes counts as 0.

    Task vectors of Ilharco et al. 2023, https://arxiv.org/abs/2212.04089. None if one changes nothing.
    """
    size = total_norm(first) * total_norm(second)
    return _inner(first, second) / size if size > 0 else None


def _inner(first: Sequence[Change], second: Sequence[Change]) -> float:
    """⟨first, second⟩ over all parameters of the base; trained tensors that are no changes are left out."""
    others: dict[str, list[Change]] = {}
    for change in second:
        if change.form != "tensor":
            others.setdefault(change.key, []).append(change)
    return sum(product(one, other) for one in first if one.form != "tensor" for other in others.get(one.key, []))


def total_norm(changes: Sequence[Change]) -> float:
    """The norm of all changes of the base together; trained tensors that are no changes are left out."""
    return math.sqrt(max(0.0, _inner(changes, changes)))


def _dense(change: Change) -> Tensor:
    if change.factors is not None:
        return change.factors[1] @ change.factors[0]
    assert change.matrix is not None
    return change.matrix


def _rank(change: Change) -> int:
    """Number of singular values that are not 0 up to rounding."""
    assert change.svd is not None
    values = change.svd[1]
    return int((values > values[0] * 1e-9).sum())


def _phi(first: Tensor, second: Tensor, rows: int, columns: int) -> list[list[float]]:
    """φ(i, j) of orthonormal columns (D, k) for i up to `rows` and j up to `columns`."""
    squares = (first[:, :rows].T @ second[:, :columns]).square()  # (rows, columns)
    sums = squares.cumsum(0).cumsum(1)
    least = torch.minimum(torch.arange(1, rows + 1)[:, None], torch.arange(1, columns + 1)[None])
    return [[min(1.0, float(value)) for value in row] for row in sums / least]
