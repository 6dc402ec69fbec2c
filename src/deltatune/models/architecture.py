"""Model families: encoder, decoder or encoder-decoder, and which heads transformers has for them."""

from __future__ import annotations

from typing import Literal

from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from deltatune.core.sites.blocks import is_decoder

Family = Literal["encoder", "decoder", "encoder-decoder"]
Answers = Literal["row", "token", "text", "likelihood"]
"""What a model outputs for a task: logits per row, logits per token, generated text, or likelihoods of tokens."""
Loads = Literal[Answers, "mask", "pairs", "words"]
"""Kind of model to load: "row" and "token" a bare transformer, "text" and "likelihood" a language model,
"mask" a masked language model, "pairs" a masked language model with next-sentence prediction, "words" the language
model of its family, whichever that is."""


def family(config: PretrainedConfig) -> Family:
    """The family of the model that a config describes; decoders and encoder-decoders generate text."""
    if getattr(config, "is_encoder_decoder", False):
        return "encoder-decoder"
    return "decoder" if is_decoder(config) else "encoder"


def sees_all_at_last_token(config: PretrainedConfig) -> bool:
    """Whether only the last token attends to the whole text: decoders, and the decoder of encoder-decoders."""
    return family(config) != "encoder"


def has_masked_lm(config: PretrainedConfig) -> bool:
    """Whether transformers has a masked language model of this type."""
    return config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def can_generate(config: PretrainedConfig) -> bool:
    """Whether transformers has a language model of this type that generates text."""
    names = (
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES if config.is_encoder_decoder else MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    )
    return family(config) != "encoder" and config.model_type in names
