"""Soft prompts as tokens: virtual ids at or above the vocabulary, in front of each row of `input_ids`.

Lengths, masks, labels, caches and generation then see ordinary tokens; only the embedding site treats them differently.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationMixin

from deltatune.core.errors import DeltatuneError
from deltatune.core.route import Route
from deltatune.core.seams.answer_start import IGNORED, AnswerStart, end_of_prompt, past_of, tokens_of
from deltatune.core.seams.hook_points import BatchContext
from deltatune.core.sites.non_block_sites import output_embeddings
from deltatune.core.sites.site import Facts


class PromptSeam:
    """Pre-hook of the whole model: inserts prompts where a plain caller gave none, and keeps the mask."""

    def __init__(self, model: nn.Module, facts: Facts, context: BatchContext) -> None:
        self.facts, self.context = facts, context
        pad = getattr(model.config, "pad_token_id", None)
        self.pad = pad if isinstance(pad, int) else 0
        self.answers = AnswerStart(output_embeddings(model) is not None)
        self.lengths: dict[str, int] = {}
        """Virtual tokens of each active adapter that has any."""
        self.route = Route()
        self._names = tuple(signature(model.forward).parameters)
        model.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        batch = {**dict(zip(self._names, args, strict=False)), **kwargs}
        inserted = bool(self.lengths) and self.missing(batch)
        columns = self.answers.columns(batch)
        if inserted:
            if columns is not None:
                batch[_ANSWER] = _from_columns(columns, tokens_of(batch).shape[1])
            batch = self.insert(batch)
            if columns is not None:
                columns = _first(batch.pop(_ANSWER))
            if self.facts.decoder and "position_ids" in self._names and batch.get("position_ids") is None:
                # Rows with shorter prompts are padded on the left; learned positions must not count the padding.
                batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
        self.context.mask = _two_dimensional(batch.get("attention_mask"))
        if self.context.mask is None and self.facts.decoder:
            self.context.mask = _all_so_far(batch)
        self.context.decoder_mask = _two_dimensional(batch.get("decoder_attention_mask"))
        self.context.offsets = None if columns is None else _offsets(columns, batch)
        self.context.see_prompt(batch.get("input_ids"))
        return ((), batch) if inserted else None

    def _virtual(self, ids: Tensor) -> bool:
        """Whether the caller has inserted virtual tokens already."""
        virtual = (ids >= self.facts.vocabulary).any()
        if torch.compiler.is_compiling():  # a graph cannot depend on it: callers of a compiled model pass plain ids
            torch._assert_async(~virtual, "a compiled model inserts soft prompts itself: pass ids without them")
            return False
        most = self.facts.vocabulary + max(self.lengths.values())
        if bool((ids >= most).any()):
            raise DeltatuneError(
                f"the input has virtual tokens up to number {int(ids.max()) - self.facts.vocabulary + 1}, but the "
                f"acting prompt has {max(self.lengths.values())}: give the adapter as many as its template has"
            )
        return bool(virtual)

    def insert(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the batch with every row's prompt in front."""
        lengths = self.of_rows(len(batch["input_ids"])) if isinstance(batch.get("input_ids"), Tensor) else []
        longer = insert_prompts(batch, lengths, self.facts.vocabulary, self.pad, left=self.facts.decoder)
        if self.facts.encoder_decoder and "labels" in batch:  # the decoder's, of any length
            longer["labels"] = batch["labels"]
        return longer

    def of_rows(self, batch: int) -> Sequence[int]:
        """Virtual tokens of each row of a batch."""
        return [max([0, *(self.lengths.get(name, 0) for name in row)]) for row in self.route.weights(batch)]

    def missing(self, batch: Mapping[str, Any]) -> bool:
        """Whether the prompts still have to be inserted. Raises DeltatuneError inside a plain `generate`."""
        ids, cache = batch.get("input_ids"), batch.get("past_key_values")
        if batch.get("encoder_outputs") is not None or past_of(batch):
            return False
        if isinstance(ids, Tensor) and self._virtual(ids):
            return False
        if cache is not None:
            raise DeltatuneError(
                "with a soft prompt, generate through host.generate(...), which inserts its tokens first"
            )
        return True


_ANSWER = "answer_tokens"
"""In a batch while prompts are inserted: 1 at and behind the first answer token (B, T)."""


def _from_columns(columns: Tensor, length: int) -> Tensor:
    return (torch.arange(length, device=columns.device) >= columns[:, None]).long()


def _first(answer: Tensor) -> Tensor:
    """The first column (B,) with 1, or the number of columns (T)."""
    return torch.where(answer.any(1), answer.argmax(1), answer.shape[1])


def _offsets(columns: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """Columns (B, T) of the input's tokens from the first one of each row's answer."""
    past, new = past_of(batch), tokens_of(batch).shape[1]
    return torch.arange(past, past + new, device=columns.device) - columns[:, None]


def _two_dimensional(mask: Any) -> Tensor | None:
    return mask if isinstance(mask, Tensor) and mask.dim() == 2 else None


def _all_so_far(batch: Mapping[str, Any]) -> Tensor | None:
    """The mask (B, S) of a call with a cache but without a mask: generate() passes none where every token is real."""
    if batch.get("past_key_values") is None:
        return None
    past, ids = past_of(batch), batch.get("input_ids")
    return ids.new_ones(ids.shape[0], past + ids.shape[1]) if isinstance(ids, Tensor) else None


def insert_prompts(
    batch: Mapping[str, Any], lengths: Sequence[int], vocabulary: int, pad: int, left: bool
) -> dict[str, Any]:
    """Return the batch with `lengths[i]` virtual ids before the first real token of row i.

    `input_ids`, `attention_mask` and `token_type_ids` (B, T) become (B, T + max(lengths)); per-token `labels` get -100
    there. Rows with shorter prompts are padded, on the left if `left` or if the batch already is.
    Raises DeltatuneError when ids or a two-dimensional mask are missing.
    """
    ids = batch.get("input_ids")
    if not isinstance(ids, Tensor):
        raise DeltatuneError(
            "a soft prompt needs input_ids (B, T); this call gives none (inputs_embeds cannot carry one)"
        )
    mask = batch.get("attention_mask")
    if mask is not None and mask.dim() != 2:
        raise DeltatuneError(f"a soft prompt needs an attention_mask of shape (B, T), not {tuple(mask.shape)}")
    mask = torch.ones_like(ids) if mask is None else mask
    layout = _Layout(mask, lengths, left)
    out = dict(batch)
    out["input_ids"] = torch.where(layout.virtual, vocabulary + layout.index, layout.move(ids, pad))
    out["attention_mask"] = torch.where(layout.virtual, 1, layout.move(mask, 0)).to(mask.dtype)
    for name in ("token_type_ids", _ANSWER):
        if isinstance(values := batch.get(name), Tensor):
            out[name] = layout.move(values, 0)
    labels = batch.get("labels")
    if isinstance(labels, Tensor) and labels.shape == ids.shape and not labels.is_floating_point():  # one a token
        out["labels"] = layout.move(labels, IGNORED)
    if isinstance(positions := batch.get("position_ids"), Tensor):
        shifted = positions.expand_as(ids) + layout.lengths[:, None]
        out["position_ids"] = torch.where(layout.virtual, layout.index, layout.move(shifted, 0))
    return out


class _Layout:
    """The source column of every column of the longer batch."""

    def __init__(self, mask: Tensor, lengths: Sequence[int], left: bool) -> None:
        rows, columns = mask.shape
        longest = max(lengths)
        self.lengths = torch.tensor(lengths, device=mask.device)
        padding = (mask.cumsum(1) == 0).sum(1)  # (B,) zeros in front of the first real token
        offset = longest - self.lengths  # (B,) start of rows with shorter prompts, if padded on the left
        start = padding + (offset if left else torch.where((padding > 0).any(), offset, 0))  # (B,) first virtual id
        columns_out = torch.arange(columns + longest, device=mask.device).expand(rows, -1)  # (B, T')
        self.index = columns_out - start[:, None]
        self.virtual = (self.index >= 0) & (self.index < self.lengths[:, None])
        source = self.index - self.lengths[:, None] + padding[:, None]
        self.real = (self.index >= self.lengths[:, None]) & (source < columns)
        self.source = source.clamp(0, columns - 1)

    def move(self, tensor: Tensor, fill: int) -> Tensor:
        """Move a (B, T) tensor to (B, T'), with `fill` where there is no real token."""
        return torch.where(self.real, tensor.gather(1, self.source), fill).to(tensor.dtype)


def generate(model: Any, prompts: PromptSeam, inputs: Mapping[str, Any]) -> Any:
    """Run `model.generate` on a batch with the route's prompts in front; the result holds no virtual ids."""
    if not prompts.lengths:
        with prompts.answers.stating(_answers_behind(prompts, inputs)):
            return model.generate(**inputs)
    ids: Tensor = inputs["input_ids"]
    named: tuple[str, ...] = ("input_ids", "attention_mask", "token_type_ids")
    batch = prompts.insert({key: inputs[key] for key in named if key in inputs})
    width = prompts.facts.vocabulary + max(prompts.lengths.values())
    widen = model.register_forward_hook(_widener(width))
    prompts.context.generating = True
    try:
        with prompts.answers.stating(_answers_behind(prompts, batch)), _config_of_beams(model, width):
            out = model.generate(**{**inputs, **batch})
    finally:
        prompts.context.generating = False
        widen.remove()
    return out if prompts.facts.encoder_decoder else _without_prompts(out, ids, batch["input_ids"].shape[1])


def _answers_behind(prompts: PromptSeam, inputs: Mapping[str, Any]) -> Tensor | None:
    """The columns (B,) where the answers to a batch of prompts begin, if an active adapter wants to know them."""
    return end_of_prompt(tokens_of(inputs), inputs.get("attention_mask")) if prompts.answers.wanted else None


def _widener(width: int) -> Any:
    """Add logit columns for the virtual ids, never to be chosen, so that logits processors can index them."""

    def widen(module: nn.Module, args: Any, output: Any) -> Any:
        missing = width - output.logits.shape[-1]
        if missing > 0:
            output.logits = F.pad(output.logits, (0, missing), value=torch.finfo(output.logits.dtype).min)
        return output

    return widen


def _config_of_beams(model: Any, width: int) -> Any:
    """Beams of transformers before 5.18 divide by the vocabulary of the config, not by the logits that there are."""
    continuations: Any = getattr(GenerationMixin, "_get_top_k_continuations", None)
    old = continuations is not None and "vocab_size" in signature(continuations).parameters
    return _vocabulary_of(model.config.get_text_config(), width) if old else nullcontext()


@contextmanager
def _vocabulary_of(config: Any, width: int) -> Iterator[None]:
    before = config.vocab_size
    config.vocab_size = max(width, before)
    try:
        yield
    finally:
        config.vocab_size = before


def _without_prompts(out: Any, ids: Tensor, length: int) -> Any:
    sequences: Tensor = out if isinstance(out, Tensor) else out.sequences
    original = ids.repeat_interleave(len(sequences) // len(ids), 0)
    clean = torch.cat([original, sequences[:, length:]], 1)
    if isinstance(out, Tensor):
        return clean
    out.sequences = clean
    return out
