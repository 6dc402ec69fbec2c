"""Discovery of a model's sites, from what transformers declares about it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from inspect import signature

from torch import nn

from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.sites.blocks import (
    Block,
    body,
    find_blocks,
    is_causal,
    is_norm,
    maps_of,
    modules_of,
    shared_modules,
    task_heads,
)
from deltatune.core.sites.denoisers import find_denoiser_sites, is_denoiser
from deltatune.core.sites.fused_projections import dispatches, parts_of, reaches_attention
from deltatune.core.sites.module_names import (
    ATTENTION_NORMS,
    POSITIONS,
    TEXT_POSITIONS,
    flag,
    in_attention,
    is_expert,
    role_of,
)
from deltatune.core.sites.non_block_sites import (
    embeddings,
    linear_site,
    norm_site,
    output_embeddings,
    outside,
    unnamed_outside,
)
from deltatune.core.sites.site import Facts, Site, Sites, generic
from deltatune.core.sites.weight_sites import weight_sites


def find_sites(model: nn.Module, roles: Mapping[str, str] | None = None) -> Sites:
    """Find every site of a model of transformers or diffusers.

    `roles` names leaves that the table does not know (`{"my_q": "attn.q"}`).

    Raises DeltatuneError when no transformer block is found or a role in `roles` names no module.
    """
    if not isinstance(model, nn.Module):
        raise DeltatuneError(f"{model!r} is not a model object; load it first, with AutoModel.from_pretrained(...)")
    roles = dict(roles or {})
    if is_denoiser(model):
        return find_denoiser_sites(model, roles)
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
        of_block, without_role = _block_sites(model, block, roles)
        sites += of_block
        unnamed += without_role
    sites += outside(model, blocks, heads)
    unnamed += unnamed_outside(model, blocks, heads, {site.module for site in sites})
    _check_roles(model, roles)
    weights = list(weight_sites(model, blocks, heads))
    facts = _facts(model, sites, weights)
    # A prefix at only some of the attentions would be another method: all of them, or none
    attentions: set[type] = {type(model.get_submodule(site.module)) for site in sites if site.kind == "kv"}
    if not reaches_attention(model) or not all(dispatches(kind) for kind in attentions):
        sites = [site for site in sites if site.kind != "kv"]
    behind_encoder = ("decoder.", "lm_head") if facts.encoder_decoder else "decoder."
    sites = [replace(site, causal=facts.decoder or site.name.startswith(behind_encoder)) for site in sites]
    shared = shared_modules(model)
    sites = [_beside_shared(site, shared) for site in sites]
    return Sites(sites, weights, sorted({re.sub(r"\d+", "*", name) for name in unnamed}), facts, heads)


def _beside_shared(site: Site, shared: frozenset[str]) -> Site:
    """A site that is at a module that does not keep rows apart, or reads there.

    The latter reads the whole attention's input instead, for the module's last input is not the text (B, T, D).
    """
    if site.read in shared and site.read != site.module:
        site = replace(site, read=_parent(site.read))
    return replace(site, shared=site.module in shared)


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
        named |= {part: cut for part, cut in parts_of(model, site, role).items() if part not in named}
    sites = list(named.values())
    for group in ("attn", "cross", "ffn"):
        sites += list(_sublayer(model, block, group, named))
    sites += _mixture(block, module, named)
    return [
        *sites,
        *_norms(module, block),
        *_residual(block, sites, flag(model.config, "narrow_sublayers") is True),
    ], unnamed


def _mixture(block: Block, module: nn.Module, named: Mapping[str, Site]) -> Iterator[Site]:
    """A mixture of experts as one sublayer: each expert sees some tokens, the mixture sees all."""
    at = next((_parent(path) for path, _ in module.named_modules() if is_expert(path)), "")
    if at and "attn.o" in named and "ffn.out" not in named:
        path, width = f"{block.path}.{at}", named["attn.o"].width_out
        yield Site(
            f"{block.name}.ffn", "sublayer", path, path, width, width, layer=block.index, depth=block.depth
        )  # fmt: skip


def _residual(block: Block, sites: list[Site], narrow: bool) -> Iterator[Site]:
    """The residual stream after a block, for ReFT. `narrow`: its sublayers are narrower."""
    entry = next((site for site in sites if site.kind == "sublayer"), None)
    if entry is not None and not narrow:
        yield Site(
            f"{block.name}.residual", "residual", block.path, block.path, entry.width_out, entry.width_out,
            layer=block.index, depth=block.depth,
        )  # fmt: skip


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
    if end is not None:  # the last map's input: the FFN's activations, the concatenated outputs of the heads
        inner = f"{block.name}.ffn.act" if group == "ffn" else f"{block.name}.{group}.heads"
        yield replace(end, name=inner, kind="input", width_out=end.width_in, params=0, slice=None)
    if entry is None or end is None:
        return
    norm = _post_norm(model.get_submodule(block.path), block, end) if group == "ffn" else None
    yield replace(
        end, name=f"{block.name}.{group}", kind="sublayer", read=entry.module, width_in=entry.width_in, norm=norm,
        params=0, bias=False, transposed=False,
    )  # fmt: skip


def _post_norm(module: nn.Module, block: Block, end: Site) -> str | None:
    """The norm after the FFN's residual sum: beside its last map (BERT), or the block's last outside attention."""
    if not block.post_norm:
        return None
    norms = [f"{block.path}.{path}" for path, leaf in module.named_modules() if is_norm(leaf)]
    beside = [path for path in norms if _parent(path) == _parent(end.module) != block.path]
    outside = [
        path
        for path in norms
        if not in_attention(path.removeprefix(block.path) + ".") and not any(part in path for part in ATTENTION_NORMS)
    ]
    return next(reversed(beside or outside), None)


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


def _facts(model: nn.Module, sites: list[Site], weights: list[Site]) -> Facts:
    config = model.config
    embed = next((site for site in sites if site.kind == "embed"), None)
    entry = next((site for site in sites if site.kind == "linear"), None)
    longest = getattr(config, "max_position_embeddings", None)
    positions = [path for path, module in modules_of(model) if _takes_positions(path, module, longest)]
    both = any(site.name.startswith("decoder.") for site in sites)  # T5's tagger has no decoder
    two = both and bool(getattr(config, "is_encoder_decoder", False))
    return Facts(
        architecture=type(model).__name__,
        hidden=entry.width_in if entry else embed.width_out if embed else 0,
        vocabulary=embed.width_in if embed else 0,
        params=sum(site.params for site in weights),
        encoder_decoder=two,
        decoder=not two and is_causal(model),
        positions=longest,
        position_modules=() if two else tuple(positions),
        prefix=_body_prefix(model),
        outside=_outside_body(model),
    )


def _body_prefix(model: nn.Module) -> str:
    base = getattr(model, "base_model", model)
    if base is model:
        return ""
    return next((f"{path}." for path, module in modules_of(model) if module is base), "")


def _outside_body(model: nn.Module) -> frozenset[str]:
    """The modules of a language-model head, and those around the body; none in a model without such a head."""
    output = output_embeddings(model)
    if output is None:
        return frozenset()
    inside = {id(module) for module in body(model).modules() if module is not output}
    return frozenset(path for path, module in modules_of(model) if id(module) not in inside)


def _takes_positions(path: str, module: nn.Module, longest: int | None) -> bool:
    """Whether a module takes position ids: a listed name, or a table that counts them from the mask (OPT)."""
    counts = isinstance(module, nn.Embedding) and {"attention_mask", "position_ids"} <= set(
        signature(module.forward).parameters
    )
    leaf = path.rpartition(".")[2]
    text = leaf == TEXT_POSITIONS and getattr(module, "num_embeddings", None) == longest
    return counts or text or leaf in POSITIONS


def uneven(sites: Sites) -> dict[str, tuple[int, int]]:
    """Names that only some blocks of a stack have, with how many do, of how many: `{"layers.*.attn.q": (1, 2)}`."""
    layers: dict[str, set[int]] = {}
    depths: dict[str, int] = {}
    for site in sites.values():
        if site.layer is not None and site.kind != "norm":
            name = generic(site.name)
            layers.setdefault(name, set()).add(site.layer)
            depths[name] = site.depth
    return {name: (len(numbers), depths[name]) for name, numbers in layers.items() if len(numbers) < depths[name]}
