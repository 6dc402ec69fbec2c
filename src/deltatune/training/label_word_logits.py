"""Logits of classes by label words: one pass of the model, whose head reads only the states that predict a word."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltatune.core.host import Host
from deltatune.models.architecture import family
from deltatune.tasks.label_words.label_words import LabelWords
from deltatune.tasks.label_words.prompt_batches import SCORED
from deltatune.tasks.task import IGNORED
from deltatune.training.forward import selected_states, text_states, token_logits


def label_word_logits(host: Host, task: LabelWords, batch: dict[str, Tensor], bfloat16: bool = False) -> Tensor:
    """Scores of the classes (B, C) under the current route, from a batch of `PromptCollator`."""
    return scores_of_classes(task, place_logits(host, batch, bfloat16), batch)


def place_logits(host: Host, batch: dict[str, Tensor], bfloat16: bool = False) -> Tensor:
    """Logits (M, V) over the vocabulary at the M places of a batch of `PromptCollator`, under the current route."""
    inputs = {name: tensor for name, tensor in batch.items() if name not in (*SCORED, "labels")}
    places = batch["places"]  # (M, 2)

    def select(states: Tensor) -> Tensor:
        if not host.sites.facts.encoder_decoder:
            states = text_states(host, states, inputs)
        return states[places[:, 0], places[:, 1]][None]  # (1, M, D)

    autocast = torch.autocast(places.device.type, torch.bfloat16, enabled=bfloat16)
    reading = (selected_states(host.model, select), _of_sequences(host, len(inputs["input_ids"])))
    with reading[0], reading[1], autocast, _encoded_once(host, inputs), _answers(host, inputs, places):
        return token_logits(host.model(**_model_inputs(host, inputs)))  # (M, V)


def scores_of_classes(task: LabelWords, logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Scores of the classes (B, C), of logits (M, V) at the batch's places."""
    values = logits if task.scoring == "logit" else logits.log_softmax(-1)
    scored = values[batch["place_of"], batch["token_ids"]]  # (S,)
    word_of, count = batch["word_of"], sum(map(len, task.words))
    words = scored.new_zeros(int(word_of.max()) + 1).index_add(0, word_of, scored).view(-1, count)  # (B, W)
    tokens = torch.bincount(word_of).view(-1, count)
    return task.class_scores(words, tokens)


def _model_inputs(host: Host, inputs: dict[str, Tensor]) -> dict[str, Any]:
    """The arguments of the model's forward; decoders of encoder-decoders read a start token first."""
    model: Any = host.model
    arguments: dict[str, Any] = dict(inputs)
    if "decoder_ids" in arguments:
        ids = arguments.pop("decoder_ids")
        arguments["decoder_input_ids"] = F.pad(ids, (1, 0), value=model.config.decoder_start_token_id)
    if takes_cache(host):
        arguments["use_cache"] = False
    return arguments


def takes_cache(host: Host) -> bool:
    """Whether the model's forward can be told to keep no cache."""
    generates = family(host.model.config) != "encoder"  # type: ignore[arg-type]
    return generates and "use_cache" in signature(host.model.forward).parameters


def _of_sequences(host: Host, sequences: int) -> AbstractContextManager[None]:
    """The route of rows as that of their sequences: models that number positions once need it for every one."""
    route = host.route
    if route.rows is None or len(route.rows) == sequences:
        return nullcontext()
    return host.using(replace(route, rows=tuple(route.weights(sequences))))


@contextmanager
def _encoded_once(host: Host, inputs: dict[str, Tensor]) -> Iterator[None]:
    """Within this context an encoder reads each text once, however many decoders read what it makes of it."""
    times = len(inputs["decoder_ids"]) // len(inputs["input_ids"]) if "decoder_ids" in inputs else 1
    if times == 1:
        yield
        return

    def repeat(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        names = ("encoder_hidden_states", "encoder_attention_mask")
        repeated = {n: kwargs[n].repeat_interleave(times, 0) for n in names if isinstance(kwargs.get(n), Tensor)}
        return args, {**kwargs, **repeated}

    decoder: nn.Module = host.model.get_decoder()  # type: ignore[operator]
    handle = decoder.register_forward_pre_hook(repeat, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _answers(host: Host, inputs: dict[str, Tensor], places: Tensor) -> AbstractContextManager[None]:
    """Where a decoder's answers begin, for adapters that treat them differently from the prompt."""
    if family(host.model.config) != "decoder":  # type: ignore[arg-type]
        return nullcontext()
    labels = torch.full_like(inputs["input_ids"], IGNORED)
    inside = places[places[:, 1] + 1 < labels.shape[1]]
    labels[inside[:, 0], inside[:, 1] + 1] = 0
    labels = labels.masked_fill(inputs["attention_mask"] == 0, IGNORED)
    return host.answers(labels, inputs["attention_mask"])
