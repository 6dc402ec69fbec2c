"""Sites of diffusers' models: U-Nets, diffusion transformers, autoencoders.

Attention, feed-forward networks and norms have the same names as in other transformers. What is outside them, and what
has no role, keeps its module's name, with `down_blocks.0` shortened to `down.0`: `down.0.resnets.1.conv1`,
`time_embedding.linear_1`. Convolutions are linear maps of patches.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from torch import nn

from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.quantization.stored_weights import is_linear
from deltatune.core.sites.blocks import Block, is_norm, modules_of
from deltatune.core.sites.convolutions import Kernel, kernel_of
from deltatune.core.sites.module_names import ADDED, ATTENTION, in_cross_attention, names_added_stream, role_of
from deltatune.core.sites.non_block_sites import linear_site, norm_site
from deltatune.core.sites.site import Facts, Site, Sites, Slice
from deltatune.core.sites.weight_sites import weight_sites

_LIST = re.compile(r"_?(transformer_)?(blocks?|layers)$")
"""The end of the names of lists of blocks: `down_blocks`, `single_transformer_blocks`."""
_FEED_FORWARD = re.compile(r"(?P<at>.+)\.net\.(?P<number>\d+)(?:\.(?:proj|linear))?")
"""Maps of diffusers' FeedForward: its first module holds one, its last one is one."""
_GATED = ("GEGLU", "SwiGLU")
"""Activations with a gate: their map's output is the values, then their gates."""


def is_denoiser(model: nn.Module) -> bool:
    """Whether a model is one of diffusers, or of a class derived from one."""
    return any(kind.__module__.partition(".")[0] == "diffusers" for kind in type(model).__mro__)


def find_denoiser_sites(model: nn.Module, roles: Mapping[str, str]) -> Sites:
    """Find every site of a model of diffusers, as `find_sites` does of one of transformers."""
    _check_plain(model)
    maps = {
        path: module
        for path, module in modules_of(model)
        if (is_linear(module) or kernel_of(module)) and not is_unread(model, path)
    }
    if not maps:
        seen = sorted({type(module).__name__ for module in model.modules()})
        raise DeltatuneError(
            f"no linear maps and no convolutions found in {type(model).__name__}; modules seen: {', '.join(seen[:20])}"
        )
    _check_roles(maps, roles)
    blocks = _blocks(model)
    sites: list[Site] = []
    for block in blocks:
        sites += _block_sites(model, block, maps, roles)
    sites += _outside(model, blocks, maps, roles)
    unnamed = [path for path, module in modules_of(model) if _unreadable(module)]
    weights = list(weight_sites(model, blocks, []))
    hidden = next((site.width_in for site in sites if site.name.endswith(".q")), sites[0].width_out)
    facts = Facts(
        type(model).__name__, hidden, 0, sum(site.params for site in weights), encoder_decoder=False, decoder=False,
        positions=None, position_modules=(), denoiser=True,
    )  # fmt: skip
    return Sites(sites, weights, sorted({re.sub(r"\d+", "*", path) for path in unnamed}), facts, [])


def _check_plain(model: nn.Module) -> None:
    """Raise DeltatuneError for a model whose modules are not those that run."""
    if getattr(model, "peft_config", None):
        raise DeltatuneError(
            f"this {type(model).__name__} has adapters of PEFT in it; take them out first: pipe.unload_lora_weights(). "
            "host.load reads their file"
        )
    check_unfused(modules_of(model))


def check_unfused(modules: Iterable[tuple[str, nn.Module]]) -> None:
    """Raise DeltatuneError if an attention among these modules runs one map in place of q, k and v."""
    fused = next((path for path, module in modules if is_fused(module)), None)
    if fused is not None:
        raise DeltatuneError(
            f"the projections of {fused} are fused, so that its to_q, to_k and to_v do not run, and adapters there "
            "would have no effect; call unfuse_qkv_projections() first"
        )


def is_fused(module: nn.Module) -> bool:
    """Whether an attention runs one map in place of q, k and v: its processor says so, or in newer classes itself."""
    processor = type(getattr(module, "processor", None)).__name__
    own = hasattr(module, "_supports_qkv_fusion") and getattr(module, "fused_projections", False) is True
    return processor.startswith("Fused") or own


def is_unread(model: nn.Module, path: str) -> bool:
    """Whether a module runs without any effect: the prompt's queries in the last block of Stable Diffusion 3."""
    around, _, leaf = path.rpartition(".")
    return leaf in ("add_q_proj", "norm_added_q") and getattr(model.get_submodule(around), "to_add_out", 0) is None


def _unreadable(module: nn.Module) -> bool:
    """Whether a module is a convolution that is no linear map of patches."""
    return isinstance(module, nn.modules.conv._ConvNd) and kernel_of(module) is None


def _check_roles(maps: Mapping[str, nn.Module], roles: Mapping[str, str]) -> None:
    raise_all([
        f"roles names {leaf!r}, but no linear map and no convolution of this model ends in it"
        for leaf in roles
        if not any(path == leaf or path.endswith("." + leaf) for path in maps)
    ])  # fmt: skip


# ---- blocks


def _is_attention(module: nn.Module) -> bool:
    first = ATTENTION["q"] | ATTENTION["qkv"]
    return any(name in first and is_linear(child) for name, child in module.named_children())


def _blocks(model: nn.Module) -> list[Block]:
    """The items of lists that hold an attention, or are one; layers count through all stages of one part."""
    stacks: dict[str, list[str]] = {}
    for path, module in modules_of(model):
        if path and _is_attention(module):
            block = _item_of_list(path)
            stack = stacks.setdefault(re.sub(r"\.?\d+", "", block), [])
            if block not in stack:
                stack.append(block)
    return [
        Block(path, _name(path, is_block=True), i, len(stack), post_norm=False)
        for stack in stacks.values()
        for i, path in enumerate(stack)
    ]


def _item_of_list(path: str) -> str:
    """The nearest item of a list that a path leads to or through, or the module around it where there is none."""
    parts = path.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[-1] + 1] if numbers else parts[:-1] or parts)


def _name(path: str, is_block: bool = False) -> str:
    """`down_blocks.0.resnets.1` -> `down.0.resnets.1`; a block `single_transformer_blocks.0` -> `single.layers.0`."""
    parts = path.split(".")
    names: list[str] = []
    for i, part in enumerate(parts):
        stem = _LIST.sub("", part)
        if stem == part:
            names.append(part)
        elif is_block and i == len(parts) - 2:
            names += [stem, "layers"] if stem else ["layers"]
        else:
            names.append(stem or part)
    return ".".join(names)


@dataclass
class _Groups:
    """Names of the attentions and feed-forward networks of one block: `attn`, `cross`, `attn2`, `ffn`, `ffn_text`."""

    of_module: dict[str, str] = field(default_factory=dict)

    def name(self, path: str, wanted: str) -> str:
        """The name of the one at a path, `wanted` or the first number of it that is free."""
        if path not in self.of_module:
            taken = set(self.of_module.values())
            free = (wanted if i == 1 else f"{wanted}{i}" for i in range(1, len(taken) + 2))
            self.of_module[path] = next(name for name in free if name not in taken)
        return self.of_module[path]


def _block_sites(
    model: nn.Module, block: Block, maps: Mapping[str, nn.Module], roles: Mapping[str, str]
) -> Iterator[Site]:
    named: dict[str, Site] = {}
    groups, module = _Groups(), model.get_submodule(block.path)
    inside = [path for path in maps if path.startswith(block.path + ".")]
    for path in inside:
        within = path.removeprefix(block.path + ".")
        role = _role(module, within, roles, groups)
        role = within if role is None or role in named else role
        site = _map_site(f"{block.name}.{role}", path, maps[path], block)
        named[role] = site
        if role.endswith(".gate_up") and role.partition(".")[0] in groups.of_module.values():
            named |= _halves(block, role.rpartition(".")[0], site)
    yield from named.values()
    for group in _sublayer_groups(named):
        yield from _sublayer(block, group, named)
    norms = [(path, leaf) for path, leaf in module.named_modules() if is_norm(leaf) and not is_unread(module, path)]
    for i, (path, leaf) in enumerate(norms):
        site = norm_site(f"{block.name}.norm.{i}", f"{block.path}.{path}", leaf)
        yield replace(site, layer=block.index, depth=block.depth)


def _role(block: nn.Module, path: str, roles: Mapping[str, str], groups: _Groups) -> str | None:
    """Role of the map at a path within its block; None if it has none and keeps its name."""
    given = _given_role(path, roles)
    if given is not None:
        return given
    parts = path.split(".")
    around = [".".join(parts[:i]) for i in range(len(parts) - 1, -1, -1)]
    attention = next((at for at in around if _is_attention(block.get_submodule(at))), None)
    if attention is not None:
        module = block.get_submodule(attention)
        crosses = getattr(module, "is_cross_attention", None)
        crosses = in_cross_attention(f"{attention}.x") if crosses is None else bool(crosses)
        group = groups.name(attention, "cross" if crosses else "attn")
        leaf = next(part for part in reversed(parts) if not part.isdigit())
        if len(parts) - len(attention.split(".") if attention else []) > 1 and not parts[-1].isdigit():
            return None  # deeper inside: an image prompt's own projections
        if leaf in ADDED:
            return f"{group}_text.{ADDED[leaf]}"
        return next((f"{group}.{role}" for role, names in ATTENTION.items() if leaf in names), None)
    feed_forward = _FEED_FORWARD.fullmatch(path)
    if feed_forward is not None:
        at = feed_forward["at"]
        group = groups.name(at, "ffn_text" if names_added_stream(at) else "ffn")
        if feed_forward["number"] != "0":
            return f"{group}.out"
        gated = type(block.get_submodule(f"{at}.net.0")).__name__ in _GATED
        return f"{group}.gate_up" if gated else f"{group}.in"
    role = role_of(path, {})
    return role if role is not None and role.startswith("ffn.") else None


def _given_role(path: str, roles: Mapping[str, str]) -> str | None:
    """The user's own name for a module, by its leaf or its last two components."""
    parts = path.split(".")
    return next((roles[name] for name in (".".join(parts[-2:]), parts[-1]) if name in roles), None)


def _halves(block: Block, group: str, site: Site) -> dict[str, Site]:
    """The values and the gates of a gated feed-forward network, which come in this order."""
    half = site.width_out // 2
    return {
        f"{group}.{role}": replace(
            site, name=f"{block.name}.{group}.{role}", width_out=half, params=(site.width_in + site.bias) * half,
            slice=Slice(start, half),
        )
        for role, start in (("in", 0), ("gate", half))
    }  # fmt: skip


def _sublayer_groups(named: Mapping[str, Site]) -> list[str]:
    ends = [role.rpartition(".") for role in named if role.endswith((".o", ".out"))]
    return [group for group, _, leaf in ends if leaf == ("out" if group.startswith("ffn") else "o")]


def _sublayer(block: Block, group: str, named: Mapping[str, Site]) -> Iterator[Site]:
    """The sublayer as a whole, and the input of its last map: activations, or the outputs of the heads."""
    feeds = group.startswith("ffn")
    first = ("gate_up", "in") if feeds else ("qkv", "q")
    entry = next((named[f"{group}.{role}"] for role in first if f"{group}.{role}" in named), None)
    end = named[f"{group}.{'out' if feeds else 'o'}"]
    if end.kernel is not None or (entry is not None and entry.kernel is not None):
        return
    inner = f"{block.name}.{group}.{'act' if feeds else 'heads'}"
    yield replace(end, name=inner, kind="input", width_out=end.width_in, params=0)
    if entry is not None and entry.width_in == end.width_out:
        yield replace(
            end, name=f"{block.name}.{group}", kind="sublayer", read=entry.module, width_in=entry.width_in,
            params=0, bias=False, transposed=False,
        )  # fmt: skip


# ---- outside the blocks


def _outside(
    model: nn.Module, blocks: list[Block], maps: Mapping[str, nn.Module], roles: Mapping[str, str]
) -> Iterator[Site]:
    inside = tuple(block.path + "." for block in blocks)
    for path, module in modules_of(model):
        if inside and path.startswith(inside):
            continue
        if path in maps:
            role = _given_role(path, roles)
            around = _name(path.rpartition(".")[0])
            name = _name(path) if role is None else f"{around}.{role}" if around else role
            yield _map_site(name, path, module, None)
        elif path and is_norm(module):
            yield norm_site(_name(path), path, module)


def _map_site(name: str, path: str, module: nn.Module, block: Block | None) -> Site:
    """A linear map or a convolution as a site."""
    kernel = kernel_of(module)
    if kernel is None:
        return linear_site(name, path, module, block)
    return replace(_convolution(name, path, module, kernel), layer=block.index if block else None,
                   depth=block.depth if block else 0)  # fmt: skip


def _convolution(name: str, path: str, module: nn.Module, kernel: Kernel) -> Site:
    assert isinstance(module, nn.Conv2d)
    width_in, width_out, bias = module.in_channels * kernel.area, module.out_channels, module.bias is not None
    return Site(
        name, "linear", path, path, width_in, width_out, params=(width_in + bias) * width_out, bias=bias, kernel=kernel
    )
