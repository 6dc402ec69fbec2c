"""Prefix language modelling: the continuation of a text after a random prefix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError
from deltatune.tasks.pretraining.objective import Objective
from deltatune.tasks.pretraining.random_draws import random_integer
from deltatune.tasks.row_columns import raise_listed, text_column
from deltatune.tasks.task import IGNORED, Encoded, Row, TokenRow
from deltatune.tasks.tokenization import check_length


@dataclass(frozen=True)
class PrefixLM(Objective):
    """`-Σ_{t>c} log p(x_t | x_<t)`, c uniform     Raffel et al. 2019, https://arxiv.org/abs/1910.10683

    It trains a T5 to generate text instead of spans before prompt tuning: "LM adaptation" of Lester et al. 2021,
    https://arxiv.org/abs/2104.08691. A decoder has no loss on the prefix.
    """

    name: ClassVar[str] = "prefix-lm"
    shortest: ClassVar[int] = 5  # start, end, and three tokens, of which a last piece of one token takes one

    def encode(
        self,
        rows: Sequence[Row],
        tokenizer: PreTrainedTokenizerBase,
        *,
        positions: int | None = None,
        positions_taken: int = 0,
        labelled: bool = True,
        joined: bool = False,
    ) -> Encoded:
        """Tokenise documents, split them into pieces, and each piece into prefix and continuation, by `seed`.

        `joined`: prefix and continuation are one sequence, for a decoder. Raises DeltatuneError for a missing column,
        documents of fewer than 2 tokens and a max_length that the model has no positions for.
        """
        check_length(self.max_length, positions, positions_taken)
        ends = end_tokens(tokenizer, joined)
        size = self.max_length - len(ends["start"]) - len(ends["end"])
        pieces = split_documents(text_column(rows, self.text[0]), tokenizer, size)
        whole = [{"whole": piece, **ends} for _, piece in pieces]
        return self.drawn(whole, [owner for owner, _ in pieces], len(rows))

    def draw(self, row: TokenRow, generator: torch.Generator) -> TokenRow:
        """The piece with another random prefix."""
        return sequence_row(row, *split_prefix(row["whole"], generator))

    def target(self) -> str:
        return "the continuation after a random prefix"


# ---- documents, prefixes and labels


def split_prefix(ids: Sequence[int], generator: torch.Generator) -> tuple[list[int], list[int]]:
    """A text as a prefix and its continuation, both of one token or more, split at a uniform position."""
    if len(ids) < 2:
        raise DeltatuneError(f"a prefix and its continuation need 2 tokens or more, not {len(ids)}")
    length = random_integer(1, len(ids) - 1, generator)
    return list(ids[:length]), list(ids[length:])


def causal_labels(ids: Sequence[int], starts: Sequence[int] = ()) -> list[int]:
    """Labels (T,) of a causal language model: the tokens themselves; the state at t - 1 predicts the label at t.

    `starts` are positions where another document begins: its first token has no label.
    """
    labels = list(ids)
    for position in starts:
        labels[position] = IGNORED
    return labels


def prefix_labels(prefix: Sequence[int], continuation: Sequence[int]) -> tuple[list[int], list[int]]:
    """Inputs and labels (T,) of a decoder with a loss on the continuation alone."""
    return [*prefix, *continuation], [IGNORED] * len(prefix) + list(continuation)


def split_document(ids: Sequence[int], size: int) -> list[list[int]]:
    """A long document in pieces of `size` tokens; the last may be shorter."""
    if size < 1:
        raise DeltatuneError(f"pieces of {size} tokens cannot be made")
    return [list(ids[start : start + size]) for start in range(0, len(ids), size)]


def split_documents(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, size: int) -> list[tuple[int, list[int]]]:
    """Documents in pieces of 2 to `size` tokens, without special ones, and the number of each piece's document.

    A piece needs two tokens to be split, so a last piece of one token takes one from the piece before.
    Raises DeltatuneError listing the documents of fewer than 2 tokens.
    """
    documents = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"] if texts else []
    raise_listed(
        [f"row {i} has {len(ids) or 'no'} tokens: {texts[i]!r}" for i, ids in enumerate(documents) if len(ids) < 2],
        "a text is split into input and target, so it needs two tokens; remove these rows",
    )
    return [(i, piece) for i, ids in enumerate(documents) for piece in _at_least_two(split_document(ids, size))]


def _at_least_two(pieces: list[list[int]]) -> list[list[int]]:
    if len(pieces[-1]) == 1:
        pieces[-1].insert(0, pieces[-2].pop())
    return pieces


def end_tokens(tokenizer: PreTrainedTokenizerBase, joined: bool) -> dict[str, Any]:
    """The tokens before and after a piece, as `sequence_row` needs them.

    Decoders have a start token if the tokenizer has one. Encoder-decoders have an end token after the input and after
    the target, as in T5's pretraining.
    """
    start, end = tokenizer.bos_token_id if joined else None, tokenizer.eos_token_id
    return {
        "joined": int(joined),
        "start": [] if start is None else [start],
        "end": [] if end is None else [end],
    }


def sequence_row(row: TokenRow, source: Sequence[int], target: Sequence[int]) -> TokenRow:
    """The row with this source and target: in one sequence for decoders, in two for encoder-decoders."""
    if row["joined"]:
        inputs, labels = prefix_labels([*row["start"], *source], [*target, *row["end"]])
    else:
        inputs, labels = [*source, *row["end"]], [*target, *row["end"]]
    return {**row, "input_ids": inputs, "attention_mask": [1] * len(inputs), "labels": labels}
