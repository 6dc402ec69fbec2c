"""Soft prompts as PEFT's types PROMPT_TUNING and P_TUNING: vectors in front of the embedded input.

PEFT stores P-tuning's finished vectors too, so both types are read as a `Prompt`. Encoder-decoders get 2P rows, of
which PEFT uses the first P.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from deltatune.core.adapter import Adapter
from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.host import Host
from deltatune.core.method import Method
from deltatune.core.registry import registry
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

root = PROMPT_ROOT
KEY = "prompt_embeddings"


def obstacles(method: Method, host: Host, heads: Sequence[str]) -> list[str]:
    """PEFT hands the model vectors in place of ids, which not every model takes well."""
    facts, kind = host.sites.facts, task_type(host, heads)
    if kind is None:
        return [f"PEFT has no task type for {facts.architecture}, and without one it leaves prompts out silently"]
    if kind == "SEQ_CLS" and facts.decoder:
        return [
            f"PEFT gives {facts.architecture} vectors in place of token ids, and the model then reads its answer "
            "from padding"
        ]
    if kind == "SEQ_CLS" and facts.encoder_decoder:
        return [f"PEFT gives vectors in place of token ids, which {facts.architecture} does not take"]
    return []


def write(host: Host, adapter: Adapter) -> Theirs:
    """Config and tensor of type PROMPT_TUNING."""
    site, delta = next((site, delta) for _, site, delta in adapter.entries() if delta.needs.virtual_tokens)
    prompt = delta.get_parameter("prompt").detach()  # (P, D)
    heads = sorted(heads_of(adapter))
    config = common_config(host, "PROMPT_TUNING", heads)
    stacks = 2 if config["task_type"] == "SEQ_2_SEQ_LM" else 1
    rest = prompt.new_zeros((stacks - 1) * len(prompt), prompt.shape[1])
    config |= {
        "num_virtual_tokens": len(prompt),
        "token_dim": site.width_out,
        "num_transformer_submodules": stacks,
        "num_layers": max(one.depth for one in host.sites.values()),
        "num_attention_heads": getattr(host.model.config, "num_attention_heads", 1),
        "prompt_tuning_init": "RANDOM",
    }
    if heads:
        config["modules_to_save"] = heads
    return Theirs(config, whole={KEY: torch.cat([prompt, rest])})


def read(host: Host, foreign: Foreign) -> Ours:
    """A `Prompt` and its vectors."""
    length = int(foreign.config.get("num_virtual_tokens") or 0)
    if KEY not in foreign.tensors or length < 1:
        raise DeltatuneError(f"the PEFT adapter {foreign.place} has no tensor {KEY} or no num_virtual_tokens")
    method: Method = registry()["Prompt"](length=length, init="uniform")
    problems = obstacles(method, host, stored_heads(host, foreign))
    raise_all(problems, f"cannot read the PEFT adapter {foreign.place}:" if problems else "")
    site = method.pick(host.sites)[0]
    vectors = foreign.tensors[KEY]
    if len(vectors) == 2 * length and host.sites.facts.encoder_decoder:
        vectors = vectors[:length]
    return Ours(method, {f"prompt.{site.name}.prompt": vectors}, {KEY})
