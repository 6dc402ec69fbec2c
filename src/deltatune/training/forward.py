"""From a batch to logits: the base under its route, then the head of each row's adapter."""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from deltatune.core.errors import DeltatuneError
from deltatune.core.host import Host
from deltatune.tasks.heads import Head


def base_outputs(
    host: Host, batch: dict[str, Tensor], bfloat16: bool = False, states: bool = True, behind: bool = True
) -> Any:
    """Run the base under the current route; `batch` holds what its forward takes, without labels.

    With `states`, the result has hidden states for a Head to read; without, the model answers with its own head.
    `behind`: an encoder-decoder's decoder reads each token one step later, behind its start token.
    """
    more: dict[str, Any] = {}
    if states and reads_decoder(host):
        more = decoder_inputs(host.model, batch) if behind else same_inputs(batch)
    if states and getattr(host.model, "base_model", host.model) is not host.model:
        more["output_hidden_states"] = True
    kind = batch["input_ids"].device.type
    with torch.autocast(kind, torch.bfloat16, enabled=bfloat16):
        return host.model(**{**more, **batch})


def reads_decoder(host: Host) -> bool:
    """Whether the states a Head reads are a decoder's behind an encoder."""
    return host.sites.facts.encoder_decoder and "decoder_input_ids" in signature(host.model.forward).parameters


def decoder_inputs(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What an encoder-decoder's decoder reads to classify: the input once more, behind the start token.

    As T5ForSequenceClassification and BartForSequenceClassification do.
    """
    ids, mask = batch["input_ids"], real_tokens(batch)
    config: Any = model.config
    start = torch.full_like(ids[:, :1], config.decoder_start_token_id)
    return {
        "decoder_input_ids": torch.cat([start, ids[:, :-1]], 1),
        "decoder_attention_mask": torch.cat([torch.ones_like(mask[:, :1]), mask[:, :-1]], 1),
    }  # (B, T) each


def same_inputs(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The decoder reads the input as it is, so that its state at a token has read that token, and the whole input."""
    return {"decoder_input_ids": batch["input_ids"], "decoder_attention_mask": real_tokens(batch)}


def real_tokens(batch: dict[str, Tensor]) -> Tensor:
    """The batch's own mask (B, T), 1 at real tokens."""
    mask = batch.get("attention_mask")
    return torch.ones_like(batch["input_ids"]) if mask is None else mask


def text_mask(host: Host, batch: dict[str, Tensor]) -> Tensor:
    """Where the hidden states (B, T') of the last forward belong to the text: a soft prompt's tokens are not pooled.

    T' is the batch's T plus the virtual tokens. Virtual tokens stand right before a row's first real one.
    """
    own = real_tokens(batch)
    virtual = virtual_tokens(host, len(own))
    if not any(virtual) or host.mask is None or reads_decoder(host):
        return own
    return host.mask * (host.mask.cumsum(1) > torch.tensor(virtual, device=own.device)[:, None])


def virtual_tokens(host: Host, rows: int) -> list[int]:
    """Soft-prompt tokens that the current route puts in front of each row."""
    lengths = {name: tokens_of(host, name) for name in host.route.names}
    return [max((lengths[name] for name in row), default=0) for row in host.route.weights(rows)]


def tokens_of(host: Host, name: str) -> int:
    """Soft-prompt tokens of one adapter."""
    return max((int(getattr(delta, "tokens", 0)) for _, _, delta in host.adapters[name].entries()), default=0)


def hidden_states(outputs: Any) -> tuple[Tensor, Tensor | None]:
    """Last hidden states (B, T', D) and the pooler's output (B, D) if there is one."""
    for name in ("last_hidden_state", "decoder_hidden_states", "hidden_states"):
        found = getattr(outputs, name, None)
        if found is not None:
            return (found if isinstance(found, Tensor) else found[-1]), getattr(outputs, "pooler_output", None)
    raise DeltatuneError(f"the base returns no hidden states for a head to read, only {', '.join(outputs.keys())}")


def pooled(host: Host, head: Head, batch: dict[str, Tensor], bfloat16: bool = False) -> Tensor:
    """What the head's classifier reads: (B, D), or (B, T, D) for a head without pooling."""
    each = head.config.pooling == "none"
    states, pooler = hidden_states(base_outputs(host, batch, bfloat16, behind=not each))
    if each:
        return head.pool(text_states(host, states, batch), real_tokens(batch))
    return head.pool(states, text_mask(host, batch), pooler)


def text_states(host: Host, states: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """States (B, T, D) of the batch's own tokens among those (B, T', D) of tokens and soft prompts."""
    own = real_tokens(batch)
    rows, length = own.shape
    if states.shape[1] == length:
        return states
    lengths = virtual_tokens(host, rows)
    if len(set(lengths)) == 1:  # padding on either side: a row's tokens keep their distance from the end
        return states[:, states.shape[1] - length :]
    assert host.mask is not None
    first = host.mask.argmax(1) + torch.tensor(lengths, device=own.device) - own.argmax(1)  # (B,)
    place = torch.arange(length, device=own.device) + first[:, None]
    place = place.clamp(0, states.shape[1] - 1)[..., None].expand(-1, -1, states.shape[-1])
    return states.gather(1, place)


FAR = -1e4
"""Logit of padding: no span begins or ends there."""


def tokenwise(head: Head, states: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Logits (B, T, C) of a head without pooling, FAR at padding."""
    return head.classify(states).masked_fill(real_tokens(batch)[..., None] == 0, FAR)


def head_of(host: Host, name: str) -> Head | None:
    """The task head an adapter keeps; None where it adapts the model's own."""
    head = host.adapters[name].head
    if head is not None and not isinstance(head, Head):
        raise DeltatuneError(f"adapter {name!r} keeps a {type(head).__name__}; tasks need a deltatune.tasks.Head")
    return head


def adapter_logits(host: Host, name: str, batch: dict[str, Tensor], bfloat16: bool = False) -> Tensor:
    """Logits (B, C) or (B, T, C) of one adapter's head, or the model's own, under the current route."""
    head = head_of(host, name)
    if head is not None:
        read = pooled(host, head, batch, bfloat16)
        return tokenwise(head, read, batch) if head.config.pooling == "none" else head.classify(read)
    return own_logits(base_outputs(host, batch, bfloat16, states=False), name).float()


def own_logits(outputs: Any, name: str) -> Tensor:
    """Logits (B, C) of the model's own task head."""
    logits = getattr(outputs, "logits", None)
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        raise DeltatuneError(
            f"adapter {name!r} has no head and the model gives no logits of its own; "
            "attach it with head=Head(task.head_config(model.config))"
        )
    return logits


def logits(host: Host, batch: dict[str, Tensor], bfloat16: bool = False) -> list[Tensor]:
    """Logits (C,) of each row, by the heads of the adapters its route names: one pass of the base for all rows.

    A row with several adapters gets the weighted mean of their heads. Raises DeltatuneError for a row without a head.
    """
    rows = host.route.weights(len(batch["input_ids"]))
    names = sorted({name for row in rows for name in row if host.adapters[name].head is not None})
    outputs = base_outputs(host, batch, bfloat16, states=bool(names))
    headless = sorted(host.route.names - set(names))
    found: list[Tensor | None] = [None] * len(rows)
    if headless or not names:
        found = list(own_logits(outputs, ", ".join(headless)).float())
    sums: dict[int, tuple[Tensor, float]] = {}
    for name in names:
        for i, values in head_rows(
            host, name, [i for i, row in enumerate(rows) if name in row], outputs, batch
        ).items():
            total, weight = sums.get(i, (torch.zeros_like(values), 0.0))
            sums[i] = total + rows[i][name] * values, weight + rows[i][name]
    answers = [sums[i][0] / sums[i][1] if i in sums else found[i] for i in range(len(rows))]
    if missing := [i for i, answer in enumerate(answers) if answer is None]:
        raise DeltatuneError(
            f"rows {missing} run without an adapter that has a head; give each row one in host.use([...])"
        )
    return [answer for answer in answers if answer is not None]


def head_rows(host: Host, name: str, mine: list[int], outputs: Any, batch: dict[str, Tensor]) -> dict[int, Tensor]:
    """Logits (C,) by row number for the rows of one adapter's head."""
    head = head_of(host, name)
    assert head is not None
    states, pooler = hidden_states(outputs)
    at = torch.tensor(mine, device=states.device)
    values = head(states[at], text_mask(host, batch)[at], None if pooler is None else pooler[at])
    return dict(zip(mine, values, strict=True))
