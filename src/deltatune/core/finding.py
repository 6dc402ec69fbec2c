"""Finding the sites of a model from what transformers declares about it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from inspect import signature
from typing import Any

from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from deltatune.core.blocks import Block, find_blocks, is_norm, maps_of, modules_of, task_heads
from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.outside import embeddings, linear_site, norm_site, outside, unnamed_outside
from deltatune.core.roles import INTERLEAVED, POSITIONS, in_attention, role_of
from deltatune.core.sites import Facts, Site, Sites, Slice


def find_sites(model: nn.Module, roles: Mapping[str, str] | None = None) -> Sites:
    """Find every site of a transformers model; `roles` names leaves the table does not know (`{"my_q": "attn.q"}`).

    Raises DeltatuneError when no transformer block is found or a role in `roles` names no module.
    """
    if not isinstance(model, nn.Module):
        raise DeltatuneError(f"{model!r} is not a model object; load it first, with AutoModel.from_pretrained(...)")
    roles = dict(roles or {})
    heads = task_heads(model)
    blocks = find_blocks(model)
    if not blocks:
        seen = sorted({type(module).__name__ for module in model.modules()})
        raise DeltatuneError(
            f"no transformer blocks found in {type(model).__name__}; modules seen: {', '.join(seen[:20])}"
        )
    sites: list[Site] = [*embeddings(model, blocks)]
    unnamed: list[str] = []
    for block in blocks:
        found, left = _block_sites(model, block, roles)
        sites += found
        unnamed += left
    sites += outside(model, blocks, heads)
    unnamed += unnamed_outside(model, blocks, heads, {site.module for site in sites})
    _check_roles(model, roles)
    weights = list(_weights(model, blocks, heads))
    facts = _facts(model, sites, weights)
    if not _reaches_attention(model):
        sites = [site for site in sites if site.kind != "kv"]
    return Sites(sites, weights, sorted({re.sub(r"\d+", "*", name) for name in unnamed}), facts, heads)


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def _block_sites(model: nn.Module, block: Block, roles: Mapping[str, str]) -> tuple[list[Site], list[str]]:
    module = model.get_submodule(block.path)
    named: dict[str, Site] = {}
    unnamed, seen = [], set()
    for path, leaf in maps_of(module).items():
        role = role_of(path, roles)
        if role is None or role in seen:
            unnamed.append(f"{block.path}.{path}")
            continue
        seen.add(role)
        site = linear_site(f"{block.name}.{role}", f"{block.path}.{path}", leaf, block)
        named[role] = site
        named |= {part: one for part, one in _parts(model, site, role).items() if part not in named}
    sites = list(named.values())
    for group in ("attn", "cross", "ffn"):
        sites += list(_sublayer(model, block, group, named))
    return [*sites, *_norms(module, block), *_residual(block, sites)], unnamed


def _residual(block: Block, sites: list[Site]) -> Iterator[Site]:
    """The residual stream behind a block: what ReFT changes."""
    entry = next((site for site in sites if site.kind == "sublayer"), None)
    if entry is not None:
        yield Site(
            f"{block.name}.residual", "residual", block.path, block.path, entry.width_out, entry.width_out,
            layer=block.index, depth=block.depth,
        )  # fmt: skip


def _parts(model: nn.Module, site: Site, role: str) -> dict[str, Site]:
    """The parts of a fused projection as sites of their own, each with its slice."""
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
    config: Any = model.config
    heads: int = config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    groups = getattr(config, "num_key_value_heads", None) or (1 if getattr(config, "multi_query", False) else heads)
    leaf = site.module.rpartition(".")[2]
    if leaf in INTERLEAVED:
        whole = site.width_out == 3 * heads * head
        return {part: Slice(i * head, head, heads) for i, part in enumerate("qkv")} if whole else {}
    heads_first = leaf == "c_attn" and groups == heads and not site.transposed  # GPTBigCode
    # A layout not known for sure gets no parts (older code has its own; CodeGen's is q, v, k in four runs):
    # `qkv` as a whole can still be adapted.
    if site.width_out != (heads + 2 * groups) * head or heads_first or not _reaches_attention(model):
        return {}
    return {
        "q": Slice(0, heads * head),
        "k": Slice(heads * head, groups * head),
        "v": Slice((heads + groups) * head, groups * head),
    }


def _sublayer(model: nn.Module, block: Block, group: str, named: Mapping[str, Site]) -> Iterator[Site]:
    """The sublayer as a whole (output changed before the residual sum) and, for attention, its keys and values."""
    first = ("gate_up", "in", "gate") if group == "ffn" else ("qkv", "q")
    entry = next((named[f"{group}.{role}"] for role in first if f"{group}.{role}" in named), None)
    end = named.get(f"{group}.out" if group == "ffn" else f"{group}.o")
    key = named.get(f"{group}.k")
    if group != "ffn" and entry is not None and key is not None:
        yield replace(
            entry, name=f"{block.name}.{group}.kv", kind="kv", module=_parent(entry.module), width_out=key.width_out,
            params=0, bias=False, transposed=False, slice=None,
        )  # fmt: skip
    if end is not None:  # what the last map reads: the FFN's activations, the heads' outputs side by side
        inner = f"{block.name}.ffn.act" if group == "ffn" else f"{block.name}.{group}.heads"
        yield replace(end, name=inner, kind="input", width_out=end.width_in, params=0, slice=None)
    if entry is None or end is None:
        return
    norm = _post_norm(model.get_submodule(block.path), block) if group == "ffn" else None
    yield replace(
        end, name=f"{block.name}.{group}", kind="sublayer", read=entry.module, width_in=entry.width_in, norm=norm,
        params=0, bias=False, transposed=False,
    )  # fmt: skip


def _post_norm(module: nn.Module, block: Block) -> str | None:
    if not block.post_norm:
        return None
    norms = [path for path, leaf in module.named_modules() if is_norm(leaf)]
    mine = [path for path in norms if not in_attention(path + ".") and not path.rpartition(".")[2].startswith("sa_")]
    return f"{block.path}.{mine[-1]}" if mine else None


def _norms(module: nn.Module, block: Block) -> Iterator[Site]:
    norms = [(path, leaf) for path, leaf in module.named_modules() if is_norm(leaf)]
    for i, (path, leaf) in enumerate(norms):
        yield replace(
            norm_site(f"{block.name}.norm.{i}", f"{block.path}.{path}", leaf), layer=block.index, depth=block.depth
        )


def _check_roles(model: nn.Module, roles: Mapping[str, str]) -> None:
    paths = list(maps_of(model))
    raise_all([
        f"roles names {leaf!r}, but no linear map of this model ends in it"
        for leaf in roles
        if not any(path == leaf or path.endswith("." + leaf) for path in paths)
    ])  # fmt: skip


def _weights(model: nn.Module, blocks: list[Block], heads: list[str]) -> Iterator[Site]:
    """Every distinct base parameter; `layer`: its block's number, `depth` for what lies above the blocks, or None."""
    for path, parameter in model.named_parameters():
        if path.split(".")[0] in heads or path.split(".")[0] == "deltatune":
            continue
        owner, _, attribute = path.rpartition(".")
        block = next((block for block in blocks if path.startswith(block.path + ".")), None)
        above = (
            block is None and "emb" not in owner.lower() and (is_norm(model.get_submodule(owner)) or "pooler" in owner)
        )
        depth = block.depth if block else max(block.depth for block in blocks)
        yield Site(
            path, "weight", owner, owner, 0, 0, params=parameter.numel(), attribute=attribute,
            layer=block.index if block else (depth if above else None), depth=depth,
        )  # fmt: skip


def _facts(model: nn.Module, sites: list[Site], weights: list[Site]) -> Facts:
    config = model.config
    embed = next((site for site in sites if site.kind == "embed"), None)
    entry = next((site for site in sites if site.kind == "linear"), None)
    positions = [path for path, module in modules_of(model) if _takes_positions(path, module)]
    two = bool(getattr(config, "is_encoder_decoder", False))
    return Facts(
        architecture=type(model).__name__,
        hidden=entry.width_in if entry else embed.width_out if embed else 0,
        vocabulary=embed.width_in if embed else 0,
        params=sum(site.params for site in weights),
        encoder_decoder=two,
        decoder=not two and _causal(model),
        positions=getattr(config, "max_position_embeddings", None),
        position_modules=() if two else tuple(positions),
    )


def _takes_positions(path: str, module: nn.Module) -> bool:
    """Whether position ids pass through a module: a known name, or a table that counts them from the mask (OPT)."""
    counts = isinstance(module, nn.Embedding) and {"attention_mask", "position_ids"} <= set(
        signature(module.forward).parameters
    )
    return counts or path.rpartition(".")[2] in POSITIONS


def _causal(model: nn.Module) -> bool:
    config: Any = model.config
    kind = config.model_type
    generates = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return generates or any(getattr(module, "is_causal", False) is True for _, module in modules_of(model))


def _reaches_attention(model: nn.Module) -> bool:
    """Whether the model's attention goes through transformers' AttentionInterface, the seam that prefixes need."""
    probe = getattr(model, "_can_set_attn_implementation", None)
    return bool(probe and probe())
