"""Fused projections: slices of one map's output (q, k and v; gate and up), taken out and put back."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from inspect import getsource, unwrap
from typing import Any

import torch
from torch import Tensor, nn

from deltatune.core.sites.module_names import CONTIGUOUS, INTERLEAVED, flag
from deltatune.core.sites.site import Site, Slice


def take(h: Tensor, cut: Slice | None) -> Tensor:
    """The part of (..., width) that a slice names."""
    if cut is None:
        return h
    if cut.groups == 1:
        return h[..., cut.start : cut.start + cut.width]
    return _split(h, cut.groups)[..., cut.start : cut.start + cut.width].flatten(-2)


def put(h: Tensor, cut: Slice | None, part: Tensor) -> Tensor:
    """A copy of (..., width) with the part that a slice names replaced."""
    if cut is None:
        return part
    whole = _split(h, cut.groups)
    return torch.slice_scatter(
        whole, _split(part, cut.groups).to(h.dtype), -1, cut.start, cut.start + cut.width
    ).flatten(-2)


def _split(h: Tensor, groups: int) -> Tensor:
    return h.reshape(*h.shape[:-1], groups, -1)


def parts_of(model: nn.Module, site: Site, role: str) -> dict[str, Site]:
    """The parts of a fused projection as sites of their own by role, each with its slice; empty for other maps."""
    group, _, leaf = role.rpartition(".")
    cuts: dict[str, Slice] = {}
    if leaf == "gate_up":
        half = site.width_out // 2
        cuts = {"gate": Slice(0, half), "in": Slice(half, half)}
    elif leaf == "qkv":
        cuts = _qkv(model, site)
    parts = {}
    for part, cut in cuts.items():
        width = cut.width * cut.groups
        name = site.name.rpartition(".")[0] + "." + part
        params = (site.width_in + site.bias) * width
        parts[f"{group}.{part}"] = replace(site, name=name, width_out=width, params=params, slice=cut)
    return parts


def _qkv(model: nn.Module, site: Site) -> dict[str, Slice]:
    """Slices by part; none for a layout that is not certain (CodeGen's is q, v, k in four runs).

    The whole can still be adapted as `qkv`.
    """
    config: Any = model.config
    heads: int = config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    groups = getattr(config, "num_key_value_heads", None) or (1 if flag(config, "multi_query") else heads)
    leaf = site.module.rpartition(".")[2]
    if flag(config, "grouped_qkv"):
        return _grouped(heads // config.num_kv_heads, head, config.num_kv_heads)
    if leaf in INTERLEAVED and site.width_out == 3 * heads * head:
        return _grouped(1, head, heads)
    if leaf in INTERLEAVED and not flag(config, "multi_query"):
        return {}
    certain = (
        config.model_type in CONTIGUOUS or leaf in INTERLEAVED
    )  # Falcon 7B: all queries, then the one key and value
    heads_first = leaf == "c_attn" and groups == heads and not site.transposed  # GPTBigCode
    if site.width_out != (heads + 2 * groups) * head or heads_first or not (certain or reaches_attention(model)):
        return {}
    return {
        "q": Slice(0, heads * head),
        "k": Slice(heads * head, groups * head),
        "v": Slice((heads + groups) * head, groups * head),
    }


def _grouped(queries: int, head: int, groups: int) -> dict[str, Slice]:
    """Each group holds its queries, then a key, then a value."""
    return {
        "q": Slice(0, queries * head, groups),
        "k": Slice(queries * head, head, groups),
        "v": Slice((queries + 1) * head, head, groups),
    }


def reaches_attention(model: nn.Module) -> bool:
    """Whether the model's attention goes through transformers' AttentionInterface, the seam that prefixes need."""
    can_set = getattr(model, "_can_set_attn_implementation", None)
    return bool(can_set and can_set())


@cache
def dispatches(attention: type) -> bool:
    """Whether an attention class itself goes through the interface: in one model some may and others not (LongT5)."""
    try:
        return "ALL_ATTENTION_FUNCTIONS" in getsource(unwrap(attention.forward))  # type: ignore[attr-defined]
    except (OSError, TypeError):  # no source: the model's own declaration counts
        return True
