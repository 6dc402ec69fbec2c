"""Fixed random inputs of any model, to compare what it computes before and after a change: tokens, images or sounds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from deltatune.core.delta import generator_for
from deltatune.core.sites import Facts


def probe_inputs(model: nn.Module, facts: Facts) -> dict[str, Tensor] | None:
    """Arguments for two rows on the model's device, or None where what it reads is not known."""
    generator = generator_for(0, "probe")
    first = str(getattr(model, "main_input_name", "input_ids"))
    if first == "input_ids":
        batch = _tokens(model, facts, generator) if facts.vocabulary else None
    else:
        shape = _shape(model, first)
        batch = None if shape is None else {first: torch.randn(2, *shape, generator=generator)}
    if batch is None:
        return None
    if facts.encoder_decoder and facts.vocabulary:
        batch["decoder_input_ids"] = batch.get("input_ids", _ids(model, facts, generator))
    like = next(p for p in model.parameters() if p.is_floating_point())
    return {name: t.to(like.device, like.dtype if t.is_floating_point() else t.dtype) for name, t in batch.items()}


def _tokens(model: nn.Module, facts: Facts, generator: torch.Generator) -> dict[str, Tensor]:
    ids = _ids(model, facts, generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _ids(model: nn.Module, facts: Facts, generator: torch.Generator) -> Tensor:
    """Token ids (2, 8). T5's and BART's classifiers read the end token, of which each row must have as many."""
    ids = torch.randint(0, facts.vocabulary, (2, 8), generator=generator)
    end = getattr(model.config, "eos_token_id", None)
    if isinstance(end, int):
        ids[ids == end] = (end + 1) % facts.vocabulary
        ids[:, -1] = end
    return ids


def _shape(model: nn.Module, name: str) -> tuple[int, ...] | None:
    """Shape of one row of images or sounds, from what the config says of them."""
    config: Any = model.config
    bins: Any = getattr(config, "num_mel_bins", None)
    if name == "pixel_values" and hasattr(config, "image_size"):
        size = config.image_size
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        return getattr(config, "num_channels", 3), height, width
    if name == "input_features" and hasattr(config, "max_source_positions"):  # Whisper: two frames a position
        return bins, 2 * config.max_source_positions
    if name == "input_values" and bins and hasattr(config, "max_length"):  # spectrograms (AST)
        return config.max_length, bins
    if name == "input_values":  # samples: enough for some frames of any usual convolution
        return (4000,)
    return None
