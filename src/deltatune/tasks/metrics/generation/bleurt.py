"""BLEURT: a score that a fine-tuned encoder gives to a text and its reference."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForSequenceClassification

from deltatune.core.errors import DeltatuneError
from deltatune.models.hardware import best_device
from deltatune.models.loading import find_config, load_tokenizer, quiet
from deltatune.tasks.metrics.corpus_score import CorpusScore, mean_score

BATCH = 32
"""Pairs of a forward pass."""


def check_bleurt(model: str) -> None:
    """Raise DeltatuneError unless the model is a BLEURT checkpoint by its config. It loads nothing."""
    example = "such as Elron/bleurt-base-512, converted to safetensors"
    if not model:
        raise DeltatuneError(f"bleurt needs a BLEURT checkpoint: name it with metric_model (--metric-model), {example}")
    _, config = find_config(model)
    classifies = any(name.endswith("ForSequenceClassification") for name in config.architectures or ())
    if not classifies or config.num_labels != 1:
        raise DeltatuneError(
            f"metric_model={model}: a BLEURT checkpoint scores a pair with one output, {example}; this is "
            f"{', '.join(config.architectures or ['a model without a head'])} with {config.num_labels} labels"
        )


@lru_cache(maxsize=1)
def checkpoint(model: str) -> tuple[Any, Any]:
    """The model and its tokenizer, loaded once. Raises DeltatuneError where its weights are no safetensors."""
    place, _ = find_config(model)
    with quiet():
        try:
            scorer, report = AutoModelForSequenceClassification.from_pretrained(
                place, dtype=torch.float32, use_safetensors=True, output_loading_info=True
            )
        except (OSError, SafetensorError, ValueError, RuntimeError) as error:
            raise DeltatuneError(f"the weights of {model} cannot be loaded from safetensors: {error}") from error
        tokenizer = load_tokenizer(model, place)
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:5])
        raise DeltatuneError(f"the weights of {model} lack tensors, which would be random: {missing}")
    return scorer.eval().to(best_device()), tokenizer


@torch.no_grad()
def bleurt(predictions: Sequence[str], references: Sequence[Sequence[str]], model: str, layer: int = 0) -> CorpusScore:
    """The model's output for (reference, text), the largest of the references; Sellam et al. 2020,
    https://arxiv.org/abs/2004.04696. The scores are those of the ratings it was trained on, without fixed bounds.
    """
    scorer, tokenizer = checkpoint(model)
    pairs = [(reference, text) for text, row in zip(predictions, references, strict=True) for reference in row]
    scores: list[float] = []
    longest = min(int(tokenizer.model_max_length), int(getattr(scorer.config, "max_position_embeddings", 512)))
    for start in range(0, len(pairs), BATCH):
        left, right = (list(side) for side in zip(*pairs[start : start + BATCH], strict=True))
        batch = tokenizer(
            left, right, padding=True, truncation=True, max_length=longest, return_tensors="pt", verbose=False
        )
        scores += scorer(**batch.to(scorer.device)).logits[:, 0].float().tolist()
    best, at = [], 0
    for row in references:
        best.append(max(scores[at : at + len(row)]))
        at += len(row)
    return mean_score(best)
