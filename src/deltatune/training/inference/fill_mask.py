"""Filling blanks: the likeliest words of a masked language model at each mask of a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError
from deltatune.core.host import Host
from deltatune.models.hardware import uses_bfloat16
from deltatune.tasks.collator import collator_for
from deltatune.tasks.row_columns import raise_listed
from deltatune.tasks.task import TokenRow
from deltatune.tasks.tokenization import longest_input, not_words, token_row, word_of
from deltatune.training.forward import base_outputs, text_states
from deltatune.training.inference.batches import device_of, length_sorted_batches
from deltatune.training.inference.prediction import free_positions

BLANK = "{mask}"
"""What stands for the mask token of any tokenizer."""


def fill_masks(
    host: Host,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    top: int = 5,
    *,
    name: str | None = None,
    weight: float = 1.0,
    words: Sequence[str | None] | None = None,
    batch_size: int = 8,
    precision: str = "float32",
    first: int = 0,
) -> list[dict[str, Any]]:
    """The `top` likeliest words with their probabilities at each mask of each text.

    Returns for each text `{"filled": the text with the likeliest word at each mask, "masks": [[{"word", "score"}, ...],
    ...]}`, and with `words` also `rank`: the place of that word among all words at the text's only mask, from 1, None
    for a word of several tokens. A mask is one token: answers of several tokens cannot be found. Special tokens are no
    words, but keep their probability.
    host: a masked language model. name: the adapter that acts, multiplied by `weight`; None for the model as it is.
    first: the number of the first text in messages. In bfloat16 neighbouring words have equal scores.
    Raises DeltatuneError for a tokenizer without a mask token, and listing texts without a mask and texts that are too
    long for the model.
    """
    if top < 1:
        raise DeltatuneError(f"top={top}: at least one word is needed")
    if tokenizer.mask_token is None:
        raise DeltatuneError(
            "this tokenizer has no mask token; filling blanks needs a masked language model such as BERT"
        )
    rows = _encode(host, name, tokenizer, texts, words, first)
    if not rows:
        return []
    excluded = _not_words(host, tokenizer)
    results: list[dict[str, Any]] = [{} for _ in rows]
    collate = collator_for(host.model, tokenizer, rows[0], None if name is None else free_positions(host, name))
    bfloat16 = uses_bfloat16(host.model, precision)
    with host.using(None if name is None else {name: weight}, training=False), torch.inference_mode():
        for numbers, batch in length_sorted_batches(rows, collate, batch_size, device_of(host)):
            logits = text_states(host, base_outputs(host, batch, bfloat16, states=False).logits, batch)  # (B, T, V)
            for i, ids, values in zip(numbers, batch["input_ids"], logits, strict=True):
                masked = values[ids == tokenizer.mask_token_id].float()  # (masks, V)
                word = words[i] if words is not None else None
                results[i] = _filled(tokenizer, texts[i], masked, excluded, top)
                if words is not None:
                    results[i]["rank"] = None if word is None else _rank(tokenizer, word, masked[0], excluded)
    return results


def recall_at(ranks: Sequence[int | None], k: int) -> float:
    """P@k: the share of the texts whose word is among the k likeliest; Petroni et al. 2019,
    https://arxiv.org/abs/1909.01066. A word of several tokens (None) is never among them."""
    return sum(rank is not None and rank <= k for rank in ranks) / len(ranks) if ranks else 0.0


def _encode(
    host: Host,
    name: str | None,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    words: Sequence[str | None] | None,
    first: int,
) -> list[TokenRow]:
    longest = longest_input(host.model) if name is None else free_positions(host, name)
    masked = [text.replace(BLANK, str(tokenizer.mask_token)) for text in texts]
    encoding = tokenizer(masked, return_attention_mask=True, verbose=False) if masked else None
    rows = [] if encoding is None else [token_row(encoding, i) for i in range(len(masked))]
    problems = []
    for i, row in enumerate(rows):
        masks = row["input_ids"].count(tokenizer.mask_token_id)
        if not masks:
            problems.append(f"row {first + i} has no mask: {texts[i]!r}")
        elif words is not None and masks > 1:
            problems.append(f"row {first + i} has {masks} masks, and its word is that of one: {texts[i]!r}")
        if longest is not None and len(row["input_ids"]) > longest:
            problems.append(f"row {first + i} has {len(row['input_ids'])} tokens; the model takes {longest}")
    raise_listed(problems, f"a text has {BLANK} or {tokenizer.mask_token} where a word is missing")
    return rows


def _not_words(host: Host, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Ids (n,) that are no words: special tokens, and rows of the embedding without a token."""
    size = int(host.model.config.get_text_config().vocab_size)  # type: ignore[union-attr,operator]
    return torch.tensor(not_words(tokenizer, size), device=device_of(host))


def _filled(
    tokenizer: PreTrainedTokenizerBase, text: str, logits: Tensor, excluded: Tensor, top: int
) -> dict[str, Any]:
    probabilities = logits.softmax(-1).index_fill(-1, excluded, 0.0)  # (masks, V)
    best = probabilities.topk(min(top, probabilities.shape[-1] - len(excluded)))
    masks = [
        [{"word": word_of(tokenizer, id), "score": score} for id, score in zip(ids, scores, strict=True)]
        for ids, scores in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    filled = text.replace(BLANK, str(tokenizer.mask_token))
    for words in masks:
        filled = filled.replace(str(tokenizer.mask_token), words[0]["word"].removeprefix("##"), 1)
    return {"filled": filled, "masks": masks}


def _rank(tokenizer: PreTrainedTokenizerBase, word: str, logits: Tensor, excluded: Tensor) -> int | None:
    """The place of a word among all words, logits (V,); of its forms at a word's beginning and inside, the better."""
    forms = (tokenizer(form, add_special_tokens=False)["input_ids"] for form in (word, f" {word}"))
    ids = [form[0] for form in forms if len(form) == 1 and form[0] != tokenizer.unk_token_id]
    if not ids:
        return None
    scores = logits.index_fill(0, excluded, -torch.inf)
    return 1 + int((scores > max(scores[id] for id in ids)).sum())
