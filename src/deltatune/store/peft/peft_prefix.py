"""Prefixes as PEFT's type PREFIX_TUNING: one tensor (P, layers · 2 · H_kv·K), keys before values in every layer.

PEFT moves the real tokens' positions by P. In encoder-decoders it cuts one tensor up so that only the decoder's own
attention is prefixed, odd layers' vectors are unused, and half of the layers share theirs: refused both ways.
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from torch import nn

from deltatune.core.adapter import Adapter
from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.host import Host
from deltatune.core.method import Method
from deltatune.core.registry import registry
from deltatune.core.sites.site import Site
from deltatune.store.peft.peft_files import (
    PROMPT_ROOT,
    Foreign,
    Ours,
    Theirs,
    common_config,
    heads_of,
    stored_heads,
    task_type,
)
from deltatune.store.peft.peft_prompt import KEY

root = PROMPT_ROOT


def obstacles(method: Method, host: Host, heads: Sequence[str]) -> list[str]:
    """PEFT prefixes every attention, shifts positions, and goes round some heads."""
    facts, kind = host.sites.facts, task_type(host, heads)
    if facts.encoder_decoder:
        return [
            "PEFT's prefixes of encoder-decoders reach only the decoder's own attention, half of its layers sharing "
            "vectors: not this method"
        ]
    found = []
    if kind is None:
        found.append(f"PEFT has no task type for {facts.architecture}, and without one it leaves prefixes out silently")
    if not getattr(method, "shift_positions", True):
        found.append("shift_positions=False, but PEFT moves the positions of real tokens by the prefix's length")
    if getattr(method, "position", "prefix") != "prefix":
        found.append("keys and values within the text, but PEFT puts them in front")
    every = [site for site in host.sites.values() if site.kind == "kv"]
    if len(method.pick(host.sites)) != len(every):
        found.append(f"sites={getattr(method, 'sites', '')!r}, but PEFT prefixes every attention")
    if len({site.width_out for site in every}) > 1:
        found.append("the layers' keys differ in width, which PEFT's one tensor cannot hold")
    if kind and not _takes_past(host.model):
        if kind != "SEQ_CLS":
            found.append(f"{facts.architecture} takes no past_key_values, in which PEFT hands prefixes over")
        elif not _plain_head(host.model, heads):
            found.append(f"PEFT's prefixes go round the head of {facts.architecture}, so that its outputs differ")
    return found


def _takes_past(model: nn.Module) -> bool:
    return "past_key_values" in signature(model.forward).parameters


def _plain_head(model: nn.Module, heads: Sequence[str]) -> bool:
    """Whether the model is a body with a pooler, a dropout and a linear head: so PEFT computes it itself."""
    parts = {name: child for name, child in model.named_children() if name != "deltatune"}
    linear = {type(child) for name, child in parts.items() if name in heads} == {nn.Linear}
    body = [child for name, child in parts.items() if name not in {*heads, "dropout"}]
    pooled = len(body) == 1 and getattr(body[0], "pooler", None) is not None
    return linear and pooled and _takes_past(body[0])


def write(host: Host, adapter: Adapter) -> Theirs:
    """Config and tensor of type PREFIX_TUNING."""
    layers: list[tuple[Site, nn.Module]] = []
    layers += [(site, delta) for _, site, delta in adapter.entries() if site.kind == "kv"]
    both = [delta.get_parameter(name).detach() for _, delta in layers for name in ("keys", "values")]
    heads = sorted(heads_of(adapter))
    width = layers[0][0].width_out
    config = common_config(host, "PREFIX_TUNING", heads) | {
        "num_virtual_tokens": len(both[0]),
        "token_dim": width,
        "num_transformer_submodules": 1,
        "num_layers": len(layers),
        "num_attention_heads": width // _head_width(host),
        "encoder_hidden_size": width,
        "prefix_projection": False,
    }
    if heads:
        config["modules_to_save"] = heads
    return Theirs(config, whole={KEY: torch.cat(both, 1)})


def _head_width(host: Host) -> int:
    config: Any = host.model.config
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def read(host: Host, foreign: Foreign) -> Ours:
    """A `Prefix` and its keys and values."""
    length = int(foreign.config.get("num_virtual_tokens") or 0)
    if KEY not in foreign.tensors or length < 1:
        raise DeltatuneError(f"the PEFT adapter {foreign.place} has no tensor {KEY} or no num_virtual_tokens")
    method: Method = registry()["Prefix"](length=length)
    problems = obstacles(method, host, stored_heads(host, foreign))
    raise_all(problems, f"cannot read the PEFT adapter {foreign.place}:" if problems else "")
    layers = method.pick(host.sites)
    stored = foreign.tensors[KEY]
    wanted = (length, 2 * sum(site.width_out for site in layers))
    if tuple(stored.shape) != wanted:
        raise DeltatuneError(
            f"the PEFT adapter {foreign.place} does not fit this model: {KEY} has shape {tuple(stored.shape)}, "
            f"{wanted} would fit"
        )
    parts = torch.split(stored, [site.width_out for site in layers for _ in range(2)], dim=1)
    names = [f"prefix.{site.name}.{name}" for site in layers for name in ("keys", "values")]
    return Ours(method, dict(zip(names, parts, strict=True)), {KEY})
