"""LoRA and its relatives as PEFT's type LORA: one pair of factors a module, (A, B), and DoRA's magnitudes.

Parts of a fused projection become one pair of higher rank: `A = [A_q; A_v]`, and `B` holds each part's columns in that
part's rows. PiSSA becomes `A = [A; A - A0]`, `B = [B - B0, B0]`, a plain LoRA of rank 2r for the base as it was.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deltatune.core.adapter import Adapter
from deltatune.core.host import Host
from deltatune.core.method import Method
from deltatune.core.sites import Site
from deltatune.core.slices import put
from deltatune.store.peft.files import ROOT, Theirs, by_module, modules_config, whole_of
from deltatune.store.peft.low_rank_reading import read as read

root = ROOT
MAGNITUDE = ".lora_magnitude_vector"


def obstacles(method: Method, host: Host, heads: Sequence[str]) -> list[str]:
    """DoRA needs one magnitude a row, so it cannot act on a fused projection and on its part at once."""
    if type(method).__name__ != "DoRA":
        return []
    whole = {site.module for site in method.pick(host.sites) if site.slice is None}
    parts = [site for site in method.pick(host.sites) if site.slice is not None]
    if any(hasattr(host.model.get_submodule(site.module).weight, "full_tensor") for site in parts):
        return [
            f"the norms of {parts[0].module}, of which only a part is changed, cannot be read while FSDP spreads the "
            "base over processes; load the adapter in one process and save it again"
        ]
    return [
        f"{site.name} is a part of {site.module}, which DoRA changes as a whole too"
        for site in method.pick(host.sites)
        if site.slice is not None and site.module in whole
    ]


def write(host: Host, adapter: Adapter) -> Theirs:
    """Config and tensors of type LORA."""
    modules = by_module(adapter)
    tensors: dict[str, Tensor] = {}
    pairs: dict[str, tuple[int, float]] = {}
    for path, parts in modules.items():
        a, b, scale = _pair(host, parts)
        middle = ".lora_embedding_{}" if parts[0][0].kind == "embed" else ".lora_{}.weight"
        tensors[path + middle.format("A")], tensors[path + middle.format("B")] = a, b
        pairs[path] = (a.shape[0], scale)
        if hasattr(parts[0][1], "m"):
            tensors[path + MAGNITUDE] = _magnitude(parts)
    config = modules_config(host, "LORA", adapter, modules)
    config |= {"bias": "none", "lora_dropout": float(getattr(adapter.method, "dropout", 0.0)), **_sizes(pairs)}
    if any(key.endswith(MAGNITUDE) for key in tensors):
        config["use_dora"] = True
    return Theirs(config, tensors)


def _sizes(pairs: dict[str, tuple[int, float]]) -> dict[str, Any]:
    """Rank and alpha that most modules have, and patterns for the others; PEFT's scale is alpha / rank."""
    r, scale = Counter(pairs.values()).most_common(1)[0][0]
    return {
        "r": r,
        "lora_alpha": scale * r,
        "rank_pattern": {re.escape(path): rank for path, (rank, _) in pairs.items() if rank != r},
        "alpha_pattern": {re.escape(path): s * rank for path, (rank, s) in pairs.items() if s * rank != scale * r},
    }


def factors(delta: Any) -> tuple[Tensor, Tensor, float]:
    """(A, B, s) of a low-rank Delta, so that its change of the weight is s·BA; PiSSA's of rank 2r."""
    made = hasattr(delta, "down")
    a, b = (delta.down(), delta.up()) if made else (delta.A, delta.B)
    return a.detach(), b.detach(), float(delta.scale)


def _pair(host: Host, parts: Sequence[tuple[Site, Any]]) -> tuple[Tensor, Tensor, float]:
    """One (A, B, s) for a module: A (sum of ranks, in), B (out, sum of ranks)."""
    if parts[0][0].slice is None and len(parts) == 1:
        return factors(parts[0][1])
    whole = whole_of(host, parts[0][0]).width_out
    downs, ups, scale = [], [], float(parts[0][1].scale)
    for site, delta in parts:
        a, b, s = factors(delta)
        downs.append(a)
        ups.append(put(b.new_zeros(b.shape[1], whole), site.slice, b.T * (s / scale)).T)
    return torch.cat(downs), torch.cat(ups, 1), scale


def _magnitude(parts: Sequence[tuple[Site, Any]]) -> Tensor:
    """DoRA's m (out,) of a module; rows that no part changes keep the norms that they have."""
    site, delta = parts[0]
    m: Tensor = delta.m.detach()
    if site.slice is None:
        return m
    weight: Tensor = delta.base.stored()["weight"].detach().float()
    m = weight.norm(dim=0 if site.transposed else 1)
    for site, delta in parts:
        m = put(m, site.slice, delta.m.detach().to(m))
    return m
