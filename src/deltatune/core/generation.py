"""Generation with soft prompts: the prompt's virtual tokens go in before, and come out of the result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltatune.core.prompts import PromptSeam


def generate(model: Any, prompts: PromptSeam, inputs: Mapping[str, Any]) -> Any:
    """Run `model.generate` on a batch with the route's prompts in front; the result holds no virtual ids."""
    if not prompts.lengths:
        return model.generate(**inputs)
    ids: Tensor = inputs["input_ids"]
    named: tuple[str, ...] = ("input_ids", "attention_mask", "token_type_ids")
    batch = prompts.insert({key: inputs[key] for key in named if key in inputs})
    widen = model.register_forward_hook(_widener(prompts.facts.vocabulary + max(prompts.lengths.values())))
    try:
        out = model.generate(**{**inputs, **batch})
    finally:
        widen.remove()
    return out if prompts.facts.encoder_decoder else _without_prompts(out, ids, batch["input_ids"].shape[1])


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
