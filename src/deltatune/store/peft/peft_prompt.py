"""Soft prompts as PEFT's types PROMPT_TUNING and P_TUNING: vectors before the embedded input.

PEFT stores the final vectors of P-tuning too, so both types are read as a `Prompt`. For encoder-decoders it stores 2P
rows and uses the first P.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from deltatune.core.adapter import Adapter
from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.host import Host
from deltatune.core.method import Method
from deltatune.core.registry import registry
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

KEY = "prompt_embeddings"


class PromptFormat:
    """PEFT types PROMPT_TUNING and P_TUNING."""

    prefix = PROMPT_PREFIX

    def obstacles(self, method: Method, host: Host, heads: Sequence[str]) -> list[str]:
        """PEFT passes vectors instead of token ids, which some models do not support."""
        facts, kind = host.sites.facts, task_type(host, heads)
        if kind is None:
            return [f"PEFT has no task type for {facts.architecture}, and without one it silently leaves prompts out"]
        if kind == "SEQ_CLS" and facts.decoder:
            return [
                f"PEFT passes vectors instead of token ids, and {facts.architecture} then takes its prediction "
                "from padding"
            ]
        if kind == "SEQ_CLS" and facts.encoder_decoder:
            return [f"PEFT passes vectors instead of token ids, which {facts.architecture} does not take"]
        return []

    def write(self, host: Host, adapter: Adapter) -> Exported:
        """Convert to config and tensor of type PROMPT_TUNING."""
        site, delta = next((site, delta) for _, site, delta in adapter.entries() if delta.needs.virtual_tokens)
        prompt = delta.get_parameter("prompt").detach()  # (P, D)
        heads = sorted(head_copies(adapter))
        config = common_config(host, "PROMPT_TUNING", heads)
        stacks = 2 if config["task_type"] == "SEQ_2_SEQ_LM" else 1
        unused = prompt.new_zeros((stacks - 1) * len(prompt), prompt.shape[1])
        config |= {
            "num_virtual_tokens": len(prompt),
            "token_dim": site.width_out,
            "num_transformer_submodules": stacks,
            "num_layers": max(site.depth for site in host.sites.values()),
            "num_attention_heads": getattr(host.model.config, "num_attention_heads", 1),
            "prompt_tuning_init": "RANDOM",
        }
        if heads:
            config["modules_to_save"] = heads
        return Exported(config, unprefixed={KEY: torch.cat([prompt, unused])})

    def read(self, host: Host, folder: PeftFolder) -> Imported:
        """Convert to `Prompt` and its vectors."""
        length = int(folder.config.get("num_virtual_tokens") or 0)
        if KEY not in folder.tensors or length < 1:
            raise DeltatuneError(f"the PEFT adapter {folder.path} has no tensor {KEY} or no num_virtual_tokens")
        method: Method = registry()["Prompt"](length=length, init="uniform")
        problems = self.obstacles(method, host, stored_heads(host, folder))
        raise_all(problems, f"cannot read the PEFT adapter {folder.path}:" if problems else "")
        site = method.pick(host.sites)[0]
        vectors = folder.tensors[KEY]
        if len(vectors) == 2 * length and host.sites.facts.encoder_decoder:
            vectors = vectors[:length]
        return Imported(method, {f"prompt.{site.name}.prompt": vectors}, {KEY})
