"""Logits of classes by label words: one pass of the model, whose head reads only the states that predict a word."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from deltatune.core.host import Host
from deltatune.models.architecture import family
from deltatune.tasks.label_words.label_words import LabelWords
from deltatune.tasks.label_words.prompt_batches import SCORED
from deltatune.tasks.task import IGNORED
from deltatune.training.forward import selected_states, shifted_decoder_inputs, text_states, token_logits


def label_word_logits(host: Host, task: LabelWords, batch: dict[str, Tensor], bfloat16: bool = False) -> Tensor:
    """Scores of the classes (B, C) under the current route, from a batch of `PromptCollator`."""
    inputs = {name: tensor for name, tensor in batch.items() if name not in SCORED}
    places = batch["places"]  # (M, 2)

    def select(states: Tensor) -> Tensor:
        if not host.sites.facts.encoder_decoder:
            states = text_states(host, states, inputs)
        return states[places[:, 0], places[:, 1]][None]  # (1, M, D)

    autocast = torch.autocast(places.device.type, torch.bfloat16, enabled=bfloat16)
    with selected_states(host.model, select), autocast, _answers(host, inputs, places):
        logits = token_logits(host.model(**_model_inputs(host, inputs)))  # (M, V)
    return scores_of_classes(task, logits, batch)


def scores_of_classes(task: LabelWords, logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Scores of the classes (B, C), of logits (M, V) at the batch's places."""
    values = logits if task.scoring == "logit" else logits.log_softmax(-1)
    scored = values[batch["place_of"], batch["token_ids"]]  # (S,)
    word_of, count = batch["word_of"], sum(map(len, task.words))
    words = scored.new_zeros(int(word_of.max()) + 1).index_add(0, word_of, scored).view(-1, count)  # (B, W)
    tokens = torch.bincount(word_of).view(-1, count)
    return task.class_scores(words, tokens)


def _model_inputs(host: Host, inputs: dict[str, Tensor]) -> dict[str, Any]:
    """The arguments of the model's forward; the decoder of BART reads the text with the blank, one step later."""
    model: Any = host.model
    arguments: dict[str, Any] = dict(inputs)
    ids = arguments.pop("decoder_ids", None)
    if host.sites.facts.encoder_decoder:
        if ids is None:
            vocabulary = host.sites.facts.vocabulary
            plain = inputs["input_ids"].masked_fill(inputs["input_ids"] >= vocabulary, model.config.pad_token_id or 0)
            arguments |= shifted_decoder_inputs(model, {**inputs, "input_ids": plain})
        else:
            arguments["decoder_input_ids"] = F.pad(ids, (1, 0), value=model.config.decoder_start_token_id)
    if family(model.config) != "encoder" and "use_cache" in signature(model.forward).parameters:
        arguments["use_cache"] = False
    return arguments


def _answers(host: Host, inputs: dict[str, Tensor], places: Tensor) -> AbstractContextManager[None]:
    """Where a decoder's answers begin, for adapters that treat them differently from the prompt."""
    if family(host.model.config) != "decoder":  # type: ignore[arg-type]
        return nullcontext()
    labels = torch.full_like(inputs["input_ids"], IGNORED)
    inside = places[places[:, 1] + 1 < labels.shape[1]]
    labels[inside[:, 0], inside[:, 1] + 1] = 0
    labels = labels.masked_fill(inputs["attention_mask"] == 0, IGNORED)
    return host.answers(labels, inputs["attention_mask"])
