"""EVA: LoRA whose A starts from the principal components of its inputs, with ranks where they explain most.

Paischer et al. 2024, https://arxiv.org/abs/2410.07170. At every site A holds the first right singular vectors of
the centred inputs X (tokens, in), found batch by batch; the ranks of all sites together are kept, and go to the
components that explain most of the variance of their inputs. Sites left without any get no LoRA.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from deltatune.core.adapter import Adapter
from deltatune.core.delta import generator_for
from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.host import Host
from deltatune.core.sites.site import Site, brief, brief_ranks
from deltatune.methods.low_rank.lora import LoRA, LowRank
from deltatune.methods.low_rank.pissa import range_svd, svd
from deltatune.methods.low_rank.site_ranks import rank_at

EXACT = 1024
"""Rows or columns of a matrix up to which its singular vectors are computed exactly."""
MOST_BATCHES = 1000
"""Batches after which components that still turn are an error: nearly equal variances never settle."""

NOTHING = 1e-8
"""Share of the variance below which a component is rounding: its direction means nothing and need not settle."""


class PrincipalComponents:
    """The first k principal components of vectors that come in batches (Ross et al. 2008), and what they explain."""

    def __init__(self, k: int) -> None:
        self.k = k
        self.components: Tensor | None = None
        """(k, in), orthonormal, each with its largest number positive; None before the first batch."""
        self.singular = torch.empty(0)
        self.mean = torch.empty(0)
        self.squares = torch.empty(0)
        """Sum of the squared distances of all vectors from their mean, for each element."""
        self.seen = 0

    def update_(self, X: Tensor) -> None:
        """Take in vectors (N, in), at least k."""
        n, total = len(X), self.seen + len(X)
        mean = X.double().mean(0)
        squares = (X.double() - mean).square().sum(0)
        matrix = X - mean.to(X.dtype)
        if self.components is None:
            self.mean, self.squares = mean, squares
        else:
            shift = self.mean - mean
            weight = self.seen * n / total
            correction = (weight**0.5 * shift).to(X.dtype).unsqueeze(0)
            matrix = torch.cat([self.singular.unsqueeze(1) * self.components, matrix, correction])
            self.mean = (self.mean * self.seen + mean * n) / total
            self.squares = self.squares + squares + weight * shift.square()
        if min(matrix.shape) <= EXACT:
            _, S, V = svd(matrix, self.k)
        else:
            _, S, V = range_svd(matrix, self.k, 4, generator_for(0, "eva"))
        turned = V.gather(1, V.abs().argmax(1, keepdim=True)).sign()
        self.components, self.singular, self.seen = V * turned, S, total

    @property
    def explained(self) -> Tensor:
        """(k,), the share of the vectors' variance that each component explains."""
        return self.singular.double().square() / self.squares.sum()


class _Input:
    """What one tensor that several sites read has shown so far."""

    def __init__(self, sites: list[Site], k: int, tau: float) -> None:
        self.sites, self.k, self.tau = sites, k, tau
        self.pca = PrincipalComponents(k)
        self.settled = torch.zeros(k, dtype=torch.bool)

    def update_(self, X: Tensor) -> None:
        before = self.pca.components
        self.pca.update_(X)
        if before is not None and self.pca.components is not None:
            still = torch.cosine_similarity(before, self.pca.components) >= self.tau
            self.settled = (still | (self.pca.explained < NOTHING)).cpu()


def attach_eva(
    host: Host,
    name: str,
    method: LoRA,
    batches: Iterable[Mapping[str, Any]],
    *,
    rho: float = 2.0,
    tau: float = 0.99,
    whiten: bool = False,
    seed: int = 0,
    head: nn.Module | bool | None = None,
) -> Adapter:
    """Attach a LoRA that starts as EVA does, from the inputs of its sites in batches of the training data.

    batches: keyword arguments of the model, such as a DataLoader gives them, gone through again until the components
        settle. Padding (`attention_mask` 0) and tokens without a label (-100) are left out.
    rho: the rank of a site is at most rho · r; 1 keeps all ranks. tau: cosine between a component before and after a
        batch from which on it has settled. whiten: components divided by the roots of their singular values.
    Returns the adapter; where ranks differ, a LoRA with `ranks` and `scaling="r"`: alpha is divided by r everywhere.
    Raises DeltatuneError for other methods, batches that are too small, and components that do not settle.
    """
    if not isinstance(method, LoRA):
        raise DeltatuneError(f"EVA starts a LoRA, RsLoRA or DoRA, not {method!r}")
    problems = [f"rho={rho!r} must be at least 1"] if not rho >= 1 else []
    problems += [f"tau={tau!r} must be above 0 and below 1"] if not 0 < tau < 1 else []
    picked = method.pick(host.sites)
    problems += [f"{site.name} reads token ids, which have no components" for site in picked if site.kind == "embed"]
    raise_all(problems, "EVA cannot start: " if problems else "")
    inputs, ranks = _components(host, method, picked, batches, rho, tau)
    kept = {site.name: rank for site in picked if (rank := ranks[site.name])}
    odd = {site: rank for site, rank in kept.items() if rank != method.r}
    adapter = host.attach(
        name,
        dataclasses.replace(
            method,
            sites=brief(list(kept), host.sites, method.kinds),
            ranks=brief_ranks(odd, kept),
            scaling="r" if odd else method.scaling,
        ),
        seed=seed,
        head=head,
    )
    with torch.no_grad():
        for _, site, delta in adapter.entries():
            if isinstance(delta, LowRank):
                pca = inputs[site.name].pca
                assert pca.components is not None
                A = pca.components[: len(delta.A)]
                delta.A.copy_(A / pca.singular[: len(A)].sqrt().unsqueeze(1) if whiten else A)
    return adapter


def _components(
    host: Host, method: LoRA, picked: Sequence[Site], batches: Iterable[Mapping[str, Any]], rho: float, tau: float
) -> tuple[dict[str, _Input], dict[str, int]]:
    """What the input of each site has shown, and the rank of each site."""
    own = {site.name: rank_at(method, site) for site in picked}
    budget = sum(own.values())
    groups: list[_Input] = []
    ranks: dict[str, int] = {}
    for number, batch in enumerate(_again(batches)):
        if not groups:
            for sites in _same_inputs(host, picked, batch):
                k = max(round(own[site.name] * rho) for site in sites)
                groups.append(_Input(sites, min(k, sites[0].width_in), tau))
            ranks = {site.name: group.k for group in groups for site in group.sites}
        open_ = [group for group in groups if not group.settled[: max(ranks[s.name] for s in group.sites)].all()]
        if not open_:
            break
        if number >= MOST_BATCHES:
            raise DeltatuneError(
                f"the components of the inputs at {open_[0].sites[0].name} and {len(open_) - 1} more still turn after "
                f"{number} batches; give a lower tau than {tau}, or larger batches"
            )
        seen = _inputs(host, [group.sites[0] for group in open_], batch)
        for group in open_:
            X = seen[group.sites[0].name]
            if len(X) < group.k:
                raise DeltatuneError(
                    f"EVA needs at least {group.k} tokens in each batch for {group.k} components at "
                    f"{group.sites[0].name}, and a batch has {len(X)}; give larger batches, or a lower r or rho"
                )
            group.update_(X)
        ranks = _ranks(groups, picked, budget)
    else:
        raise DeltatuneError("EVA needs batches of data, and there are none")
    return {site.name: group for group in groups for site in group.sites}, ranks


def _ranks(groups: Sequence[_Input], picked: Sequence[Site], budget: int) -> dict[str, int]:
    """As many components of all sites as the ranks add up to, those that explain most of their inputs first."""
    of = {site.name: group for group in groups for site in group.sites}
    ordered = [group.sites[0].name for group in groups]
    ordered += [site.name for site in picked if site.name not in ordered]
    shares = [(float(share), name) for name in ordered for share in of[name].pca.explained]
    chosen = [name for _, name in sorted(shares, key=lambda pair: -pair[0])[:budget]]
    return {site.name: chosen.count(site.name) for site in picked}


def _same_inputs(host: Host, picked: Sequence[Site], batch: Mapping[str, Any]) -> list[list[Site]]:
    """Sites by the tensor that they read: q, k and v of an attention; cross-attentions in all layers."""
    seen: dict[str, Tensor] = {}
    with _reading(host, picked, seen):
        host.model(**batch)
    groups: dict[tuple[int, int], list[Site]] = {}
    for site in picked:
        if site.name not in seen:
            raise DeltatuneError(f"the model has not run {site.name} on this batch; EVA needs its inputs")
        groups.setdefault((id(seen[site.name]), site.width_in), []).append(site)
    return list(groups.values())


def _inputs(host: Host, sites: Sequence[Site], batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """The vectors (N, in) that the sites read in a batch, without padding, in float32."""
    seen: dict[str, Tensor] = {}
    with _reading(host, sites, seen):
        host.model(**batch)
    vectors = {}
    for site in sites:
        x = seen[site.name]
        real = _real_tokens(site, batch, x)
        vectors[site.name] = (x.flatten(0, -2) if real is None else x[real]).float()
    return vectors


def _real_tokens(site: Site, batch: Mapping[str, Any], x: Tensor) -> Tensor | None:
    """Mask (B, T) of the tokens that count at a site: no padding, and a label where each token has one."""
    role = site.name.rpartition(".")[2]
    decoder = site.name.startswith("decoder.") and not (".cross." in site.name and role in ("k", "v"))
    mask = batch.get("decoder_attention_mask" if decoder else "attention_mask")
    labels = batch.get("labels")
    masks = [] if mask is None else [mask.bool()]
    if isinstance(labels, Tensor) and labels.shape == x.shape[:-1] and labels.dim() == 2:
        masks.append(labels != -100)
    fitting = [mask.to(x.device) for mask in masks if mask.shape == x.shape[:-1]]
    return None if not fitting else torch.stack(fitting).all(0)


@contextmanager
def _reading(host: Host, sites: Sequence[Site], seen: dict[str, Tensor]) -> Iterator[None]:
    """Within it, the bare base runs without dropout and gradients, and keeps what the sites read."""

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            seen[name] = args[0]

        return hook

    handles = [host.model.get_submodule(s.module).register_forward_pre_hook(keep(s.name)) for s in sites]
    try:
        with torch.no_grad(), host.using(None, training=False):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _again(batches: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The batches over and over; ends where a pass gives none."""
    for _ in itertools.count():
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            return
