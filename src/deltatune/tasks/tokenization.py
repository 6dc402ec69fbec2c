"""What tasks ask of tokenizers and models: ids of texts, the padding id, the longest input, a fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError
from deltatune.core.method import Method
from deltatune.tasks.task import TokenRow

PROBES = ("The quick brown fox, 12.5% of naïve CAFÉs?", "  tabs\tand\nlines  ", "日本語 emoji 🙂 un-break-able")


def tokenise(
    texts: Sequence[tuple[str, ...]], tokenizer: PreTrainedTokenizerBase, longest: int | None = None
) -> list[TokenRow]:
    """Tokenise texts or pairs, cut at `longest` tokens where one is given (the longer text of a pair first)."""
    if not texts:
        return []
    columns = [list(column) for column in zip(*texts, strict=True)]
    cut = {"truncation": "longest_first", "max_length": longest} if longest else {"truncation": False}
    # verbose=False: the tokenizer would warn of texts longer than its model, which are counted here instead
    found = tokenizer(*columns, padding=False, return_attention_mask=True, verbose=False, **cut)
    names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in found]
    return [{name: found[name][i] for name in names} for i in range(len(texts))]


def check_length(max_length: int, positions: int | None, positions_taken: int) -> None:
    """Raise DeltatuneError for a max_length that the model's positions, less those the adapter takes, cannot hold."""
    if max_length < 1 or (positions is not None and max_length + positions_taken > positions):
        most = "" if positions is None else f"; this model takes {positions} tokens"
        virtual = f", of which the adapter adds {positions_taken}" if positions_taken else ""
        fix = f": set max_length to {positions - positions_taken} or less" if positions and positions > positions_taken else ""
        raise DeltatuneError(f"max_length={max_length} cannot be used{most}{virtual}{fix}")


def need_offsets(tokenizer: PreTrainedTokenizerBase, what: str) -> None:
    """Raise DeltatuneError for a tokenizer that does not tell where in the text its tokens stand."""
    if not tokenizer.is_fast:
        raise DeltatuneError(
            f"{what} needs to know where tokens stand in the text; {type(tokenizer).__name__} does not tell. Load a "
            "fast tokenizer (one with a tokenizer.json)"
        )


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Id that fills short rows; a tokenizer without one (decoders) pads with its end token, hidden by the mask."""
    for name in ("pad_token_id", "eos_token_id"):
        found = getattr(tokenizer, name, None)
        if found is not None:
            return int(found)
    raise DeltatuneError(
        "this tokenizer has neither a padding nor an end token; set tokenizer.pad_token to a known token"
    )


def longest_input(model: nn.Module) -> int | None:
    """Number of tokens the model has positions for, None where it has no limit (T5's relative positions)."""
    config = model.config.get_text_config()  # type: ignore[union-attr,operator]
    size = getattr(config, "max_position_embeddings", None)
    if size is None:
        return None
    words = model.get_input_embeddings()  # type: ignore[operator]
    for table in model.modules():
        counted = isinstance(table, nn.Embedding) and table is not words and table.num_embeddings == size
        if counted and table.padding_idx is not None:  # RoBERTa and MPNet: positions start after the padding's
            return int(size - int(table.padding_idx) - 1)  # type: ignore[arg-type]
    return int(size)


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash (32 hex digits) of what decides the ids of a text: vocabulary, special tokens and a few encodings.

    An adapter folder holds it, so that an adapter is never fed by another tokenizer than it was trained with.
    """
    facts = {
        "vocabulary": sorted(tokenizer.get_vocab().items()),
        "special": sorted((name, str(token)) for name, token in tokenizer.special_tokens_map.items()),
        "single": [tokenizer(text, verbose=False)["input_ids"] for text in PROBES],
        "pair": tokenizer(PROBES[0], PROBES[1], verbose=False)["input_ids"],
    }
    text = json.dumps(facts, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def with_token_ids(method: Method, tokenizer: PreTrainedTokenizerBase, task: Any = None) -> Method:
    """The method with its words as token ids; `task.labels`, if it has any, are the words of the labels."""

    def tokenize(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    return method.with_token_ids(tokenize, tuple(getattr(task, "labels", ()) or ()))
