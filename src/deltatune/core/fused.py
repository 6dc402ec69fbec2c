"""Fused projections: which columns of one map are queries, keys and values, or a gate and what it gates."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from inspect import getsource, unwrap
from typing import Any

from torch import nn

from deltatune.core.roles import CONTIGUOUS, INTERLEAVED
from deltatune.core.sites import Site, Slice


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
    """Slices by part; none for a layout that is not known for sure (CodeGen's is q, v, k in four runs).

    The whole can still be adapted as `qkv`.
    """
    config: Any = model.config
    heads: int = config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    groups = getattr(config, "num_key_value_heads", None) or (1 if getattr(config, "multi_query", False) else heads)
    leaf = site.module.rpartition(".")[2]
    if getattr(config, "new_decoder_architecture", False):  # Falcon 40B: the queries of a group, their key, their value
        return _grouped(heads // config.num_kv_heads, head, config.num_kv_heads)
    if leaf in INTERLEAVED and site.width_out == 3 * heads * head:
        return _grouped(1, head, heads)
    if leaf in INTERLEAVED and not getattr(config, "multi_query", False):
        return {}
    sure = config.model_type in CONTIGUOUS or leaf in INTERLEAVED  # Falcon 7B: all queries, then the one key and value
    heads_first = leaf == "c_attn" and groups == heads and not site.transposed  # GPTBigCode
    if site.width_out != (heads + 2 * groups) * head or heads_first or not (sure or reaches_attention(model)):
        return {}
    return {
        "q": Slice(0, heads * head),
        "k": Slice(heads * head, groups * head),
        "v": Slice((heads + groups) * head, groups * head),
    }


def _grouped(queries: int, head: int, groups: int) -> dict[str, Slice]:
    """Each group holds its queries side by side, then a key, then a value."""
    return {
        "q": Slice(0, queries * head, groups),
        "k": Slice(queries * head, head, groups),
        "v": Slice((queries + 1) * head, head, groups),
    }


def reaches_attention(model: nn.Module) -> bool:
    """Whether the model's attention goes through transformers' AttentionInterface, the seam that prefixes need."""
    probe = getattr(model, "_can_set_attn_implementation", None)
    return bool(probe and probe())


@cache
def dispatches(attention: type) -> bool:
    """Whether an attention class itself goes through the interface: in one model some may, and some not (LongT5)."""
    try:
        return "ALL_ATTENTION_FUNCTIONS" in getsource(unwrap(attention.forward))  # type: ignore[attr-defined]
    except (OSError, TypeError):  # no source: the model's own word counts
        return True
