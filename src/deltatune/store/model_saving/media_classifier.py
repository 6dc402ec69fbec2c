"""Classifiers of images and sounds as one model of transformers: what differs from those of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForAudioClassification, AutoModelForImageClassification, PreTrainedModel

PADDING = 0.4
"""Share of the second sound that is padding in the comparison."""


def media_class(base: PreTrainedModel) -> Any:
    """The auto class of classifiers for what a base reads; None for text."""
    first = str(base.main_input_name)
    if first == "pixel_values":
        return AutoModelForImageClassification
    return AutoModelForAudioClassification if first in ("input_values", "input_features") else None


def widen_projector_(config: Any, width: int) -> None:
    """Let the map that speech models have before their pooling keep the width: as the identity it changes nothing."""
    if hasattr(config, "classifier_proj_size"):
        config.classifier_proj_size = width


@torch.no_grad()
def identity_projector_(model: nn.Module) -> str | None:
    """Make that map the identity; returns its path, None where a model has none."""
    projector = getattr(model, "projector", None)
    if not isinstance(projector, nn.Linear) or projector.in_features != projector.out_features:
        return None
    nn.init.eye_(projector.weight)
    if projector.bias is not None:
        nn.init.zeros_(projector.bias)
    return "projector"


def body_of(model: Any, base: PreTrainedModel) -> tuple[str, nn.Module]:
    """The part of a classifier that is the base, and its name; of Whisper that is the encoder."""
    name = base.base_model_prefix
    if not hasattr(model, name):
        same = [child for child, module in model.named_children() if type(module) is type(base)]
        name = same[0] if same else name
    body: nn.Module = getattr(model, name)
    return name, body


def media_batches(base: Any, batch: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The inputs on which a classifier is compared: as they are and, where sounds are masked, with padding."""
    if not hasattr(base, "_get_feature_vector_attention_mask") or "input_values" not in batch:
        return [dict(batch)]
    waves = batch["input_values"].clone()  # (B, T)
    mask = torch.ones(waves.shape, dtype=torch.long, device=waves.device)
    kept = round(waves.shape[1] * (1 - PADDING))
    mask[1, kept:], waves[1, kept:] = 0, 0
    return [dict(batch), {"input_values": waves, "attention_mask": mask}]


def pooled_mask(base: Any, states: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Which of the states (B, T, D) a head pools: all, or those of sounds that are not padding alone."""
    mask = batch.get("attention_mask")
    if "input_ids" in batch and mask is not None:
        return mask
    if mask is None:
        return torch.ones(states.shape[:2], dtype=torch.long, device=states.device)
    frames: Tensor = base._get_feature_vector_attention_mask(states.shape[1], mask)
    return frames.long()
