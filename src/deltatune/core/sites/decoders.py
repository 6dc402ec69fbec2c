"""Decoder or encoder: the one rule, for a configuration and for a loaded model."""

from __future__ import annotations

from torch import nn
from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from deltatune.core.sites.blocks import modules_of
from deltatune.core.sites.module_names import BIDIRECTIONAL


def is_decoder(config: PretrainedConfig) -> bool:
    """Whether a model without an encoder before it generates text from left to right.

    It does if its configuration says so (BERT with `is_decoder=True`), or if transformers has a causal language model
    of its type and no masked one. `is_decoder=False` alone says nothing: GPT-NeoX has it.
    """
    if getattr(config, "is_encoder_decoder", False):
        return False
    kind = config.model_type
    generates = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return getattr(config, "is_decoder", None) is True or (generates and kind not in BIDIRECTIONAL)


def is_causal(model: nn.Module) -> bool:
    """Whether the tokens of a loaded model see only those before them: a decoder's, or as its attention modules say."""
    if any(getattr(module, "is_causal", False) is True for _, module in modules_of(model)):
        return True
    return is_decoder(model.config)  # type: ignore[arg-type]
