"""Answers for rows: in eval mode, sorted by length inside, in row order outside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError
from deltatune.core.host import Host
from deltatune.models.architecture import family
from deltatune.models.hardware import uses_bfloat16
from deltatune.tasks.collator import Collate, collate_for
from deltatune.tasks.task import Encoded, LanguageModelTask, Row, Task, TokenRow
from deltatune.tasks.tokenization import longest_input
from deltatune.training.forward import adapter_logits, tokens_of
from deltatune.training.inference.batches import device_of, pieces
from deltatune.training.inference.decoding import write_answers
from deltatune.training.inference.likelihood import surprise


def predict(
    host: Host,
    name: str,
    task: Task,
    rows: Sequence[Row] | Encoded,
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int = 64,
    precision: str = "auto",
) -> Any:
    """Return a task's answers for rows, encoded or not, with one adapter: what `task.decode` and `task.score` read.

    For a classification logits (N, C) in float32. Route and modes are left as found.
    """
    encoded = encoded_rows(host, name, task, rows, tokenizer, labelled=False)
    if not len(encoded):
        return task.collect([], encoded)
    bfloat16 = uses_bfloat16(host.model, precision)
    with host.using(name, training=False), torch.inference_mode():
        if task.answers == "text":
            return write_answers(host, task, encoded, tokenizer, batch_size, bfloat16)
        collate = collate_on(host, name, tokenizer, encoded)
        if isinstance(task, LanguageModelTask):
            return task.collect(surprise(host, task, encoded, collate, bfloat16), encoded)
        compute = lambda batch: adapter_logits(host, name, batch, bfloat16)  # noqa: E731
        return task.collect(pieces(encoded, collate, batch_size, device_of(host), compute), encoded)


def encoded_rows(
    host: Host,
    name: str,
    task: Task,
    rows: Sequence[Row] | Encoded,
    tokenizer: PreTrainedTokenizerBase,
    labelled: bool = True,
) -> Encoded:
    """Encode rows that are not yet. Raises DeltatuneError for encoded ones too long for this adapter on this base."""
    if not isinstance(rows, Encoded):
        return encode_for(host, name, task, rows, tokenizer, labelled)
    positions, taken = longest_input(host.model), room(host, name)
    longest = max((len(row["input_ids"]) for row in rows), default=0)
    if positions is not None and longest + taken > positions:
        raise DeltatuneError(
            f"the encoded rows have up to {longest} tokens and adapter {name!r} adds {taken}, more than the "
            f"{positions} this model takes: encode them with max_length={positions - taken} or less"
        )
    return rows


def encode_for(
    host: Host, name: str, task: Task, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, labelled: bool = True
) -> Encoded:
    """Encode rows for one adapter on this base: its virtual tokens and shifted positions take room."""
    kind: str = family(host.model.config)  # type: ignore[arg-type]
    if kind not in task.families:
        families = " or an ".join(task.families)
        reason = "encoder models cannot generate text; " if kind == "encoder" else ""
        raise DeltatuneError(
            f"{type(host.model).__name__} is an {kind}: {reason}{type(task).__name__} needs a {families}"
        )
    positions, taken = longest_input(host.model), room(host, name)
    joined = kind == "decoder"  # decoders have prompt and answer in one sequence
    return task.encode(rows, tokenizer, positions=positions, room=taken, labelled=labelled, joined=joined)


def collate_on(
    host: Host, name: str, tokenizer: PreTrainedTokenizerBase, rows: Sequence[TokenRow], pack: bool = False
) -> Collate:
    """How these rows become batches for this base; padding leaves the adapter its positions.

    Rows whose tokens have labels of their own are padded on the right, so that places mean the same in a batch.
    """
    positions = longest_input(host.model)
    longest = None if positions is None else positions - room(host, name)
    left = False if isinstance(rows, Encoded) and rows.facts is not None else None
    return collate_for(host.model, tokenizer, rows[0], longest, pack, left)


def room(host: Host, name: str) -> int:
    """Positions of the base that an adapter fills: its virtual tokens, and what it shifts real ones by."""
    shift = max((int(getattr(delta, "shift", 0)) for _, _, delta in host.adapters[name].entries()), default=0)
    return tokens_of(host, name) + (shift if host.sites.facts.position_modules else 0)
