"""Model families: encoder, decoder or encoder-decoder, and which heads transformers has for them."""

from __future__ import annotations

from typing import Any, Literal

from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_MAPPING,
)

from deltatune.core.sites.blocks import is_decoder
from deltatune.data.media.media_files import Inputs

Family = Literal["encoder", "decoder", "encoder-decoder"]
Answers = Literal["row", "token", "text", "likelihood", "noise"]
"""What a model outputs for a task: logits per row, logits per token, generated text, likelihoods of tokens, or the
noise on a picture."""
Loads = Literal[Answers, "mask", "pairs", "words", "pipeline"]
"""Kind of model to load: "row" and "token" a bare transformer, "text" and "likelihood" a language model,
"mask" a masked language model, "pairs" a masked language model with next-sentence prediction, "words" the language
model of its family, whichever that is, "pipeline" a text-to-image pipeline of diffusers."""

INPUT_OF: dict[str, Inputs] = {"pixel_values": "image", "input_values": "audio", "input_features": "audio"}
"""First argument of a model's forward -> what it reads; all others read text."""
WITH_CLASS_TOKEN = {"vit", "deit", "dinov2", "dinov2_with_registers", "dinov3_vit", "clip_vision_model", "vit_msn"}
"""Types of vision models whose token for the whole image is the one to classify by."""


def family(config: PretrainedConfig) -> Family:
    """The family of the model that a config describes; decoders and encoder-decoders generate text."""
    if getattr(config, "is_encoder_decoder", False):
        return "encoder-decoder"
    return "decoder" if is_decoder(config) else "encoder"


def sees_all_at_last_token(config: PretrainedConfig) -> bool:
    """Whether only the last token attends to the whole text: decoders, and the decoder of encoder-decoders."""
    return family(config) != "encoder"


def inputs_of_model(config: PretrainedConfig) -> Inputs:
    """What the bare transformer of this config reads: token ids, pixels or sound."""
    models: Any = MODEL_MAPPING.get(type(config), None)
    model = models[0] if isinstance(models, tuple) else models
    return INPUT_OF.get(str(getattr(model, "main_input_name", "input_ids")), "text")


def vision_tower(config: PretrainedConfig) -> PretrainedConfig:
    """The config of the vision model where a config is that of two towers, for images and for texts; else itself."""
    model: Any = MODEL_MAPPING.get(type(config), None)
    towers = hasattr(model, "get_image_features") and hasattr(model, "get_text_features")
    tower: PretrainedConfig = config.vision_config if towers else config
    return tower


def state_width(config: PretrainedConfig) -> int:
    """D, the width of a model's last hidden states; hierarchical vision models are widest at the end."""
    widths = getattr(config, "hidden_sizes", None)
    return int(config.hidden_size if hasattr(config, "hidden_size") else widths[-1])  # type: ignore[index]


def has_class_token(config: PretrainedConfig) -> bool:
    """Whether the first state of a vision model is that of a token for the whole image, which its pretraining used."""
    return config.model_type in WITH_CLASS_TOKEN


def has_masked_lm(config: PretrainedConfig) -> bool:
    """Whether transformers has a masked language model of this type."""
    return config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def can_generate(config: PretrainedConfig) -> bool:
    """Whether transformers has a language model of this type that generates text."""
    names = (
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES if config.is_encoder_decoder else MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    )
    return family(config) != "encoder" and config.model_type in names
