"""Generation with soft prompts: the prompt's virtual tokens go in before, and come out of the result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltatune.core.prompts import insert_prompts

if TYPE_CHECKING:
    from deltatune.core.host import Host


def generate(host: Host, inputs: dict[str, Any]) -> Any:
    """Run `model.generate` on a batch with the route's prompts in front."""
    model: Any = host.model
    if not host.prompts:
        return model.generate(**inputs)
    ids: Tensor = inputs["input_ids"]
    longest = max(host.prompt_lengths(len(ids)))
    batch = {key: inputs[key] for key in ("input_ids", "attention_mask", "token_type_ids") if key in inputs}
    batch = insert_prompts(batch, host.prompt_lengths(len(ids)), *host._prompt_facts())
    widen = model.register_forward_hook(_widener(host.sites.facts.vocabulary + longest))
    try:
        out = model.generate(**{**inputs, **batch})
    finally:
        widen.remove()
    return out if host.sites.facts.encoder_decoder else _without_prompts(out, ids, batch["input_ids"].shape[1])


def _widener(width: int) -> Any:
    """Give logits columns for the virtual ids, never to be chosen, so that processors may look them up."""

    def widen(module: nn.Module, args: Any, output: Any) -> Any:
        missing = width - output.logits.shape[-1]
        if missing > 0:
            output.logits = F.pad(output.logits, (0, missing), value=torch.finfo(output.logits.dtype).min)
        return output

    return widen


def _without_prompts(out: Any, ids: Tensor, length: int) -> Any:
    sequences: Tensor = out if isinstance(out, Tensor) else out.sequences
    original = ids.repeat_interleave(len(sequences) // len(ids), 0)
    clean = torch.cat([original, sequences[:, length:]], 1)
    if isinstance(out, Tensor):
        return clean
    out.sequences = clean
    return out
