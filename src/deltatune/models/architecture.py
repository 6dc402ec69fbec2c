"""Families of models by what they can be asked: which way they read, whether they write, fill in, or do neither."""

from __future__ import annotations

from typing import Literal

from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from deltatune.core.sites.decoders import is_decoder

Family = Literal["encoder", "decoder", "encoder-decoder"]
Answers = Literal["row", "token", "text", "words"]
"""What a model outputs for a task: logits per row, logits per token, generated text, or likelihoods of the input."""
Loads = Literal[Answers, "mask", "pairs"]
"""Kind of model to load: "row" and "token" a bare transformer, "text" and "words" a language model that generates,
"mask" a masked language model, "pairs" a masked language model with next-sentence prediction."""


def family(config: PretrainedConfig) -> Family:
    """Encoders read both ways; decoders and encoder-decoders write."""
    if getattr(config, "is_encoder_decoder", False):
        return "encoder-decoder"
    return "decoder" if is_decoder(config) else "encoder"


def reads_left_to_right(config: PretrainedConfig) -> bool:
    """Whether only the last token has seen the whole text: decoders, and encoder-decoders, whose decoder is read."""
    return family(config) != "encoder"


def fills_in(config: PretrainedConfig) -> bool:
    """Whether transformers has a masked language model of this kind."""
    return config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def writes(config: PretrainedConfig) -> bool:
    """Whether transformers has a language model of this kind that writes text."""
    known = (
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES if config.is_encoder_decoder else MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    )
    return family(config) != "encoder" and config.model_type in known
