"""Prefixes as PEFT's type PREFIX_TUNING: one tensor (P, layers · 2 · H_kv·K), keys before values in every layer.

PEFT shifts the positions of real tokens by P. In encoder-decoders it splits one tensor so that only the decoder's self
attention has a prefix, vectors of odd layers are unused, and half of the layers share theirs: neither written nor read.
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
from deltatune.core.method import Method, hyperparameters
from deltatune.core.registry import registry
from deltatune.core.sites.site import Site
from deltatune.store.peft.peft_format import (
    PROMPT_PREFIX,
    Exported,
    Imported,
    PeftFolder,
    common_config,
    head_copies,
    stored_heads,
    task_type,
)
from deltatune.store.peft.peft_prompt import KEY


class PrefixFormat:
    """PEFT type PREFIX_TUNING."""

    prefix = PROMPT_PREFIX

    def obstacles(self, method: Method, host: Host, heads: Sequence[str]) -> list[str]:
        """PEFT prefixes every attention layer, shifts positions, and bypasses some heads."""
        facts, kind = host.sites.facts, task_type(host, heads)
        if facts.encoder_decoder:
            return [
                "PEFT's prefixes of encoder-decoders reach only the decoder's self attention, and half of the layers "
                "share vectors, which no method here does"
            ]
        problems = []
        if kind is None:
            problems.append(
                f"PEFT has no task type for {facts.architecture}, and without one it silently leaves them out"
            )
        if not hyperparameters(method).get("shift_positions", True):
            problems.append(
                "shift_positions=False, but PEFT shifts the positions of real tokens by the length of the prefix"
            )
        if hyperparameters(method).get("place", "prefix") != "prefix":
            problems.append("place is not 'prefix', but PEFT puts keys and values before the text")
        all_sites = [site for site in host.sites.values() if site.kind == "kv"]
        if len(method.pick(host.sites)) != len(all_sites):
            problems.append(
                f"sites={hyperparameters(method).get('sites', '')!r}, but PEFT prefixes every attention layer"
            )
        if len({site.width_out for site in all_sites}) > 1:
            problems.append("the keys of the layers differ in width, which PEFT's single tensor cannot hold")
        if kind and not _takes_past(host.model):
            if kind != "SEQ_CLS":
                problems.append(f"{facts.architecture} takes no past_key_values, through which PEFT passes prefixes")
            elif not _plain_head(host.model, heads):
                problems.append(f"PEFT's prefixes bypass the head of {facts.architecture}, so that its outputs differ")
        return problems

    def write(self, host: Host, adapter: Adapter) -> Exported:
        """Convert to config and tensor of type PREFIX_TUNING."""
        layers: list[tuple[Site, nn.Module]] = []
        layers += [(site, delta) for _, site, delta in adapter.entries() if site.kind == "kv"]
        tensors = [delta.get_parameter(name).detach() for _, delta in layers for name in ("keys", "values")]
        heads = sorted(head_copies(adapter))
        width = layers[0][0].width_out
        config = common_config(host, "PREFIX_TUNING", heads) | {
            "num_virtual_tokens": len(tensors[0]),
            "token_dim": width,
            "num_transformer_submodules": 1,
            "num_layers": len(layers),
            "num_attention_heads": width // _head_width(host),
            "encoder_hidden_size": width,
            "prefix_projection": False,
        }
        if heads:
            config["modules_to_save"] = heads
        return Exported(config, unprefixed={KEY: torch.cat(tensors, 1)})

    def read(self, host: Host, folder: PeftFolder) -> Imported:
        """Convert to `Prefix` and its keys and values."""
        length = int(folder.config.get("num_virtual_tokens") or 0)
        if KEY not in folder.tensors or length < 1:
            raise DeltatuneError(f"the PEFT adapter {folder.path} has no tensor {KEY} or no num_virtual_tokens")
        method: Method = registry()["Prefix"](length=length)
        problems = self.obstacles(method, host, stored_heads(host, folder))
        raise_all(problems, f"cannot read the PEFT adapter {folder.path}:" if problems else "")
        layers = method.pick(host.sites)
        stored = folder.tensors[KEY]
        expected = (length, 2 * sum(site.width_out for site in layers))
        if tuple(stored.shape) != expected:
            raise DeltatuneError(
                f"the PEFT adapter {folder.path} does not fit this model: {KEY} has shape {tuple(stored.shape)}, "
                f"{expected} would fit"
            )
        parts = torch.split(stored, [site.width_out for site in layers for _ in range(2)], dim=1)
        names = [f"prefix.{site.name}.{name}" for site in layers for name in ("keys", "values")]
        return Imported(method, dict(zip(names, parts, strict=True)), {KEY})


def _takes_past(model: nn.Module) -> bool:
    return "past_key_values" in signature(model.forward).parameters


def _plain_head(model: nn.Module, heads: Sequence[str]) -> bool:
    """Whether the model is a body with a pooler, dropout and a linear head, which PEFT computes itself."""
    parts = {name: child for name, child in model.named_children() if name != "deltatune"}
    linear = {type(child) for name, child in parts.items() if name in heads} == {nn.Linear}
    body = [child for name, child in parts.items() if name not in {*heads, "dropout"}]
    pooled = len(body) == 1 and getattr(body[0], "pooler", None) is not None
    return linear and pooled and _takes_past(body[0])


def _head_width(host: Host) -> int:
    config: Any = host.model.config
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
