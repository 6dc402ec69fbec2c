"""Rows of objectives that have a model write part of a text: pieces of documents, and what is read and written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from deltatune.tasks.objectives.prefixes import pieces
from deltatune.tasks.plain import raise_listed
from deltatune.tasks.task import IGNORED, TokenRow

SMALLEST = 3
"""Tokens of the longest pieces: a piece of one token cannot be cut, so the last may take one from the piece before."""


def cut_documents(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, size: int) -> list[tuple[int, list[int]]]:
    """Documents in pieces of 2 to `size` tokens, without special ones, each with the number of its document.

    Raises DeltatuneError listing the documents of fewer than 2 tokens.
    """
    found = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"] if texts else []
    raise_listed(
        [f"row {i} has {len(ids) or 'no'} tokens: {texts[i]!r}" for i, ids in enumerate(found) if len(ids) < 2],
        "part of a text is read and part of it written, so it needs two tokens; remove these rows",
    )
    return [(i, piece) for i, ids in enumerate(found) for piece in _at_least_two(pieces(ids, size))]


def _at_least_two(parts: list[list[int]]) -> list[list[int]]:
    if len(parts[-1]) == 1:
        parts[-1].insert(0, parts[-2].pop())
    return parts


def ends_of(tokenizer: PreTrainedTokenizerBase, joined: bool) -> dict[str, Any]:
    """What stands before and behind a piece, as `written_row` reads it: decoders have a start token where there is one.

    Encoder-decoders have an end behind what is read and what is written, as T5's pretraining did.
    """
    start, end = tokenizer.bos_token_id if joined else None, tokenizer.eos_token_id
    return {
        "joined": int(joined),
        "start": [] if start is None else [start],
        "end": [] if end is None else [end],
    }


def written_row(row: TokenRow, read: Sequence[int], written: Sequence[int]) -> TokenRow:
    """The row with this to read and this to write: in one sequence for decoders, in two for encoder-decoders."""
    if row["joined"]:
        before = [*row["start"], *read]
        answer = [*written, *row["end"]]
        inputs, labels = before + answer, [IGNORED] * len(before) + answer
    else:
        inputs, labels = [*read, *row["end"]], [*written, *row["end"]]
    return {**row, "input_ids": inputs, "attention_mask": [1] * len(inputs), "labels": labels}
