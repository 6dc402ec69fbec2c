"""Where each row's answer begins, in a decoder's batch, for adapters that treat the prompt and its answer differently.

It is stated by training (the labelled tokens) and by `Host.generate` (what follows the input). Elsewhere the labels of
the call say it, a step of generation is part of the answer, and other inputs are prompts, whose answers come next.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from deltatune.core.errors import DeltatuneError, raise_all

IGNORED = -100
"""Label of tokens without a loss."""


class AnswerStart:
    """The first column of each row's answer, if an active adapter wants to know it."""

    def __init__(self, language_model: bool) -> None:
        self.language_model = language_model
        """Whether labels of tokens are those of a language-model head, and not tags."""
        self.wanted = False
        """Whether an active adapter treats prompt and answer differently, and the model is a decoder."""
        self.stated: Tensor | None = None
        """Columns (B,) that the caller stated for the next forwards; each counts for as many rows as it is repeated."""

    @contextmanager
    def stating(self, columns: Tensor | None) -> Iterator[None]:
        """Within this block, answers begin at these columns (B,) of the sequence."""
        before, self.stated = self.stated, columns
        try:
            yield
        finally:
            self.stated = before

    def columns(self, batch: Mapping[str, Any]) -> Tensor | None:
        """The column (B,) of each row's first answer token, counted from the start of the whole sequence.

        It lies behind the input where the answer is still to come. None if nobody wants to know.
        Raises DeltatuneError where it cannot be known, and for labels that are not one answer after a prompt.
        """
        if not self.wanted:
            return None
        tokens = tokens_of(batch)
        if self.stated is not None:
            return self.stated.to(tokens.device).repeat_interleave(len(tokens) // len(self.stated))
        labels, mask = batch.get("labels") if self.language_model else None, batch.get("attention_mask")
        if isinstance(labels, Tensor) and labels.shape == tokens.shape[:2] and not labels.is_floating_point():
            return first_labelled(labels, mask)
        past, new = past_of(batch), tokens.shape[1]
        if past and new == 1:
            return tokens.new_zeros(len(tokens), dtype=torch.long)
        if past or batch.get("use_cache") is False:
            how = f"{new} tokens after {past} cached ones" if past else "a text without a cache (use_cache=False)"
            raise DeltatuneError(
                f"the adapter treats a prompt and its answer differently, and {how} may hold both: generate with "
                "host.generate(...), or say where the answers are: with host.answers(labels): model(...)"
            )
        return end_of_prompt(tokens, mask)


def first_labelled(labels: Tensor, mask: Tensor | None) -> Tensor:
    """The column (B,) of the first labelled token of each row; labels (B, T), mask (B, T) or None.

    Raises DeltatuneError unless each row's labels are one answer behind a prompt.
    """
    learned = labels != IGNORED
    before = torch.cat([torch.zeros_like(learned[:, :1]), learned[:, :-1]], 1)
    answers = (learned & ~before).sum(1)  # (B,) runs of labelled tokens
    first = torch.where(learned.any(1), learned.long().argmax(1), labels.shape[1])
    real = torch.ones_like(labels) if mask is None or mask.dim() != 2 else mask
    unprompted = (real * (torch.arange(labels.shape[1], device=labels.device) < first[:, None])).sum(1) == 0
    several = (answers > 1).nonzero().flatten().tolist()
    without = (unprompted & (answers == 1)).nonzero().flatten().tolist()
    what = "the adapter treats a prompt and its answer differently, but"
    raise_all([
        *(f"{what} row {i} has {int(answers[i])} answers (turns of a conversation, or packed rows): give each a row of "
          "its own, without packing" for i in several[:3]),
        *(f"{what} row {i} is an answer without a prompt: use a task with an input and an output, such as generate"
          for i in without[:3]),
    ])  # fmt: skip
    return first


def end_of_prompt(tokens: Tensor, mask: Any) -> Tensor:
    """The column (B,) behind the last real token of each row."""
    rows, length = tokens.shape[:2]
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        return torch.full((rows,), length, device=tokens.device)
    columns = torch.arange(1, mask.shape[1] + 1, device=tokens.device)
    last: Tensor = (mask.to(columns.dtype).clamp(max=1) * columns).amax(1)
    return last


def past_of(batch: Mapping[str, Any]) -> int:
    """The number of cached columns before this input."""
    cache = batch.get("past_key_values")
    return 0 if cache is None else int(cache.get_seq_length())


def tokens_of(batch: Mapping[str, Any]) -> Tensor:
    """The input: token ids (B, T), or their vectors (B, T, D)."""
    ids = batch.get("input_ids")
    tokens = ids if isinstance(ids, Tensor) else batch.get("inputs_embeds")
    if not isinstance(tokens, Tensor):
        raise DeltatuneError("the adapter treats a prompt and its answer differently, and this call gives no input_ids")
    return tokens
