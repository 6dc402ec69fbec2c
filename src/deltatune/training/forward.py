"""Logits of a batch: the base under its route, then the head of each row's adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from deltatune.core.errors import DeltatuneError
from deltatune.core.host import Host
from deltatune.core.sites.non_block_sites import output_embeddings
from deltatune.tasks.heads import Head, Heads

PADDING_LOGIT = -1e4
"""Logit of padding tokens: no span begins or ends there."""


def base_outputs(
    host: Host, batch: dict[str, Tensor], bfloat16: bool = False, states: bool = True, shift_right: bool = True
) -> Any:
    """Run the base under the current route; `batch` holds the arguments of its forward, without labels.

    states: whether hidden states for a Head are returned; otherwise the model answers with its own head.
    shift_right: whether the decoder of an encoder-decoder reads each token one step later, after its start token.
    """
    more: dict[str, Any] = {}
    if states and reads_decoder_states(host):
        more = shifted_decoder_inputs(host.model, batch) if shift_right else unshifted_decoder_inputs(batch)
    if states and (getattr(host.model, "base_model", host.model) is not host.model or output_embeddings(host.model)):
        more["output_hidden_states"] = True
    autocast = torch.autocast(read_first(batch).device.type, torch.bfloat16, enabled=bfloat16)
    with autocast, few_token_logits(host.model) if states else nullcontext():
        return host.model(**{**more, **batch})


def read_first(batch: Mapping[str, Tensor]) -> Tensor:
    """What a model reads of a batch: token ids (B, T), pixels (B, C, H, W) or sound (B, T)."""
    return batch["input_ids"] if "input_ids" in batch else next(iter(batch.values()))


def few_token_logits(model: nn.Module) -> AbstractContextManager[None]:
    """Within this context a language model whose states are read computes logits of one token a row, not of all."""
    if output_embeddings(model) is None:
        return nullcontext()
    return selected_states(model, lambda states: states[:, :1].contiguous())  # matmul copies weights for other strides


@contextmanager
def selected_states(model: nn.Module, select: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within this context the language-model head reads `select(states)` instead of all states (B, T, D)."""
    head = language_model_head(model)
    # before all other hooks, so that an adapter of the head reads the selected states too
    handle = head.register_forward_pre_hook(lambda module, args: (select(args[0]), *args[1:]), prepend=True)
    try:
        yield
    finally:
        handle.remove()


def token_logits(outputs: Any) -> Tensor:
    """Logits (M, V) of the language-model head, of outputs at selected states (1, M, V)."""
    logits: Tensor = outputs.get("logits", outputs.get("prediction_logits"))[0]
    return logits.float()


def language_model_head(model: nn.Module) -> nn.Module:
    """The layer that computes logits over the vocabulary. Raises DeltatuneError for a model without one."""
    head = output_embeddings(model)
    if head is None:
        raise DeltatuneError(
            f"{type(model).__name__} has no language-model head, so it can neither generate text nor be trained on "
            "tokens; load it with load_backbone(name, answers='text')"
        )
    return head


def reads_decoder_states(host: Host) -> bool:
    """Whether a Head reads the states of the decoder of an encoder-decoder."""
    return host.sites.facts.encoder_decoder and "decoder_input_ids" in signature(host.model.forward).parameters


def shifted_decoder_inputs(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Decoder inputs for classification: the encoder's input again, after the start token.

    As T5ForSequenceClassification and BartForSequenceClassification do.
    """
    ids, mask = batch["input_ids"], attention_mask_of(batch)
    config: Any = model.config
    start = torch.full_like(ids[:, :1], config.decoder_start_token_id)
    return {
        "decoder_input_ids": torch.cat([start, ids[:, :-1]], 1),
        "decoder_attention_mask": torch.cat([torch.ones_like(mask[:, :1]), mask[:, :-1]], 1),
    }  # (B, T) each


def unshifted_decoder_inputs(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Decoder inputs for token labels: the encoder's input, so that the state at a token has read that token."""
    return {"decoder_input_ids": batch["input_ids"], "decoder_attention_mask": attention_mask_of(batch)}


def attention_mask_of(batch: dict[str, Tensor]) -> Tensor:
    """The batch's attention mask (B, T), 1 at real tokens; all ones if it has none.

    Of pixels and sound it has a column for a whole row: `state_mask` has those of the states.
    """
    mask = batch.get("attention_mask")
    if mask is None:
        return torch.ones_like(batch["input_ids"]) if "input_ids" in batch else _whole_rows(read_first(batch))
    return mask


def _whole_rows(read: Tensor) -> Tensor:
    return torch.ones(len(read), 1, dtype=torch.long, device=read.device)


def state_mask(host: Host, states: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Mask (B, T') of the hidden states (B, T', D) that are pooled: of text without soft prompts and padding.

    All states of an image count; of a sound those whose frames are not padding alone.
    """
    if "input_ids" in batch:
        return text_mask(host, batch)
    rows, length = states.shape[:2]
    mask = batch.get("attention_mask")
    if mask is None:
        return torch.ones(rows, length, dtype=torch.long, device=states.device)
    frames: Tensor = host.model._get_feature_vector_attention_mask(length, mask)  # type: ignore[operator]
    return frames.long()


def text_mask(host: Host, batch: dict[str, Tensor]) -> Tensor:
    """Mask (B, T') of the text among the hidden states of the last forward: soft prompts are not pooled.

    T' is the batch's T plus the virtual tokens, which come right before a row's first real token.
    """
    mask = attention_mask_of(batch)
    lengths = host.prompt_lengths(len(mask))
    if not any(lengths) or host.mask is None or reads_decoder_states(host):
        return mask
    return host.mask * (host.mask.cumsum(1) > torch.tensor(lengths, device=mask.device)[:, None])


def text_states(host: Host, states: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """States (B, T, D) of the batch's tokens, out of those (B, T', D) of tokens and soft prompts."""
    mask = attention_mask_of(batch)
    rows, length = mask.shape
    if states.shape[1] == length:
        return states
    lengths = host.prompt_lengths(rows)
    if len(set(lengths)) == 1:  # padding on either side: a row's tokens keep their distance from the end
        return states[:, states.shape[1] - length :]
    assert host.mask is not None
    first = host.mask.argmax(1) + torch.tensor(lengths, device=mask.device) - mask.argmax(1)  # (B,)
    index = torch.arange(length, device=mask.device) + first[:, None]
    index = index.clamp(0, states.shape[1] - 1)[..., None].expand(-1, -1, states.shape[-1])
    return states.gather(1, index)


def hidden_states(outputs: Any) -> tuple[Tensor, Tensor | None]:
    """Last hidden states (B, T', D), and the pooler's output (B, D) if there is one."""
    for name in ("last_hidden_state", "decoder_hidden_states", "hidden_states"):
        states = getattr(outputs, name, None)
        if states is not None:
            return (states if isinstance(states, Tensor) else states[-1]), getattr(outputs, "pooler_output", None)
    raise DeltatuneError(f"the base returns no hidden states for a head to read, only {', '.join(outputs.keys())}")


ALL_ROWS = slice(None)


def pooled_features(host: Host, head: Head, batch: dict[str, Tensor], bfloat16: bool = False) -> Tensor:
    """The input of the head's classifier: (B, D), or (B, T, D) for a head without pooling."""
    outputs = base_outputs(host, batch, bfloat16, shift_right=head.config.pooling != "none")
    return row_features(host, head, outputs, batch)


def row_features(
    host: Host, head: Head, outputs: Any, batch: dict[str, Tensor], rows: slice | Tensor = ALL_ROWS
) -> Tensor:
    """The input of a head's classifier, (B, D) or (B, T, D), for some rows of a batch with the base's outputs."""
    states, pooler = hidden_states(outputs)
    if head.config.pooling == "none":
        return head.pool(text_states(host, states, batch)[rows], attention_mask_of(batch)[rows])
    return head.pool(states[rows], state_mask(host, states, batch)[rows], None if pooler is None else pooler[rows])


def head_of(host: Host, name: str, part: str | None = None) -> Head | None:
    """The task head of an adapter, or that of one part of a mixture; None if it adapts the model's own."""
    head = host.adapters[name].head
    if isinstance(head, Heads):
        if part is None:
            raise DeltatuneError(f"adapter {name!r} has a head for each part of a mixture ({head.names}); name a part")
        return head.of(part)
    if head is not None and not isinstance(head, Head):
        raise DeltatuneError(f"adapter {name!r} keeps a {type(head).__name__}; tasks need a deltatune.tasks.Head")
    return head


def adapter_logits(
    host: Host, name: str, batch: dict[str, Tensor], bfloat16: bool = False, part: str | None = None
) -> Tensor:
    """Logits (B, C) or (B, T, C) of one adapter's head, or of the model's own, under the current route.

    part: the part of a mixture whose head it is.
    """
    head = head_of(host, name, part)
    if head is None:
        return base_head_logits(base_outputs(host, batch, bfloat16, states=False), name).float()
    return classified(head, pooled_features(host, head, batch, bfloat16), attention_mask_of(batch))


def classified(head: Head, features: Tensor, mask: Tensor) -> Tensor:
    """Logits (B, C) or (B, T, C) of a head's features, under a mask (B, T)."""
    logits = head.classify(features)
    if head.config.pooling == "none":  # (B, T, C)
        logits = logits.masked_fill(mask[..., None] == 0, PADDING_LOGIT)
    return logits


def base_head_logits(outputs: Any, name: str) -> Tensor:
    """Logits (B, C) of the model's own task head."""
    logits = getattr(outputs, "logits", None)
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        raise DeltatuneError(
            f"adapter {name!r} has no head and the model gives no logits of its own; "
            "attach it with head=Head(task.head_config(model.config))"
        )
    return logits


def logits(host: Host, batch: dict[str, Tensor], bfloat16: bool = False) -> list[Tensor]:
    """Logits (C,) of each row by the heads of the adapters in its route, with one pass of the base for all rows.

    A row with several adapters gets the weighted mean of their logits. Raises DeltatuneError for a row without a head,
    and for one whose weights sum to 0.
    """
    weights = host.route.weights(len(read_first(batch)))
    names = sorted({name for row in weights for name in row if host.adapters[name].head is not None})
    outputs = base_outputs(host, batch, bfloat16, states=bool(names))
    headless = sorted(host.route.names - set(names))
    answers: list[Tensor | None] = [None] * len(weights)
    if headless or not names:
        answers = list(base_head_logits(outputs, ", ".join(headless)).float())
    sums: dict[int, tuple[Tensor, float]] = {}
    for name in names:
        rows = [i for i, row in enumerate(weights) if name in row]
        for i, values in zip(rows, head_logits(host, name, rows, outputs, batch), strict=True):
            total, weight = sums.get(i, (torch.zeros_like(values), 0.0))
            sums[i] = total + weights[i][name] * values, weight + weights[i][name]
    without_mean = [i for i, (_, weight) in sums.items() if weight == 0]
    if without_mean:
        raise DeltatuneError(
            f"the weights of the adapters of rows {without_mean} sum to 0, so that their logits have no weighted mean"
        )
    for i, (total, weight) in sums.items():
        answers[i] = total / weight
    if missing := [i for i, answer in enumerate(answers) if answer is None]:
        raise DeltatuneError(
            f"rows {missing} run without an adapter that has a head; give each row one in host.use([...])"
        )
    return [answer for answer in answers if answer is not None]


def head_logits(host: Host, name: str, rows: list[int], outputs: Any, batch: dict[str, Tensor]) -> Tensor:
    """Logits (len(rows), C) of one adapter's head for some rows of a batch."""
    head = head_of(host, name)
    assert head is not None
    index = torch.tensor(rows, device=read_first(batch).device)
    return head.classify(row_features(host, head, outputs, batch, index))
