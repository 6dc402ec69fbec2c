"""Batches of prompt rows: the sequences of each word side by side, and which states predict which of its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from deltatune.tasks.collator import PaddingCollator
from deltatune.tasks.label_words.prompt_rows import VIRTUAL, with_blanks
from deltatune.tasks.task import TokenRow

SCORED = ("places", "place_of", "token_ids", "word_of")
"""Names in a batch that say what is scored; the model's forward does not get them."""


class WordSequences(NamedTuple):
    """The sequences of one row that a model reads to score its words."""

    sequences: list[list[int]]
    """Token ids; an encoder's, where there are decoders."""
    scored: list[list[tuple[int, int, int]]]
    """For each word (sequence, position, id) of its tokens: `position` is that of the state that predicts the token, in
    the decoder where there is one, whose start token is at 0."""
    types: list[list[int]] | None = None
    """Token types of the sequences."""
    decoders: list[list[int]] | None = None
    """What decoders read after their start token: one for each word, or one for all."""


def word_sequences(row: TokenRow, encoder_decoder: bool) -> WordSequences:
    """The sequences of a prompt row. Those of an encoder-decoder have one text and a decoder for each longer word."""
    prompt, words, blank = row["prompt"], row["words"], row["blank"]
    if row["form"] == "left-to-right":
        answers = [[*ids, *row["after"]] for ids in words]
        if all(len(answer) == 1 for answer in answers):
            return WordSequences([prompt], [[(0, blank - 1, ids[0])] for ids in words])
        sequences = [[*prompt, *answer[:-1]] for answer in answers]
        scored = [_in_a_row(n, blank - 1, answer) for n, answer in enumerate(answers)]
        if row.get("channel"):  # p(text | word): the word itself is given
            scored = [tokens[len(ids) :] for tokens, ids in zip(scored, words, strict=True)]
        return WordSequences(sequences, scored)
    if encoder_decoder:
        begun = (
            prompt[blank : blank + 1] if row["form"] == "sentinel" else [id for id in prompt[:blank] if id < VIRTUAL]
        )
        if all(len(ids) == 1 for ids in words):
            scored = [_in_a_row(0, len(begun), ids) for ids in words]
            return WordSequences([prompt], scored, decoders=[begun])
        scored = [_in_a_row(n, len(begun), ids) for n, ids in enumerate(words)]
        return WordSequences([prompt], scored, decoders=[[*begun, *ids[:-1]] for ids in words])
    lengths = sorted({len(ids) for ids in words})
    return WordSequences(
        [with_blanks(prompt, blank, length) for length in lengths],
        [_in_a_row(lengths.index(len(ids)), blank, ids) for ids in words],
        [with_blanks(row["types"], blank, length) for length in lengths] if "types" in row else None,
    )


def _in_a_row(sequence: int, position: int, ids: Sequence[int]) -> list[tuple[int, int, int]]:
    return [(sequence, position + i, id) for i, id in enumerate(ids)]


@dataclass(frozen=True)
class PromptCollator(PaddingCollator):
    """Pads the sequences of B rows to R sequences (R, T): R is B times the sequences of a row.

    `places` (M, 2) are the states that are read, as (sequence, position); the s-th of S scored tokens is `token_ids[s]`
    at `places[place_of[s]]`, and belongs to word `word_of[s]` of the B · W words. An encoder-decoder's `decoder_ids`
    (D, T') are B decoders, or as many times B as there are words; `places` are then of its states.
    """

    vocabulary: int = 0
    """Rows of the model's embedding: virtual ids follow."""
    encoder_decoder: bool = False
    """Whether a decoder reads the words."""

    def __call__(self, rows: Sequence[TokenRow]) -> dict[str, Tensor]:
        """Return the batch; with `labels` (B,) where the rows have them."""
        made = [word_sequences(row, self.encoder_decoder) for row in rows]
        sequences = [self.with_virtual_ids(ids) for each in made for ids in each.sequences]
        width = self.width(sequences)
        inputs = {"input_ids": sequences, "attention_mask": [[1] * len(each) for each in sequences]}
        if "token_type_ids" in self.fill:
            inputs["token_type_ids"] = [types for each in made for types in each.types or ()]
        batch = {name: self.pad(inputs[name], fill, width) for name, fill in self.fill.items()}
        if self.encoder_decoder:
            decoders = [ids for each in made for ids in each.decoders or ()]
            longest, fill = max(map(len, decoders)), self.fill["input_ids"]
            batch["decoder_ids"] = torch.tensor([[*ids, *[fill] * (longest - len(ids))] for ids in decoders])
        shifted = self.left and not self.encoder_decoder
        batch |= scored_tokens(made, [width - len(each) if shifted else 0 for each in sequences])
        if "label" in rows[0]:
            batch["labels"] = torch.tensor([row["label"] for row in rows])
        return batch

    def with_virtual_ids(self, ids: Sequence[int]) -> list[int]:
        """The ids with those of virtual tokens behind the model's vocabulary."""
        return [token if token < VIRTUAL else token - VIRTUAL + self.vocabulary for token in ids]


def scored_tokens(rows: Sequence[WordSequences], offsets: Sequence[int]) -> dict[str, Tensor]:
    """`SCORED` of a batch; `offsets` are the columns by which padding moves each sequence."""
    places: dict[tuple[int, int], int] = {}
    place_of, token_ids, word_of = [], [], []
    first, word = 0, 0
    for row in rows:
        for tokens in row.scored:
            for number, position, token in tokens:
                moved = 0 if row.decoders is not None else offsets[first + number]
                place_of.append(places.setdefault((first + number, position + moved), len(places)))
                token_ids.append(token)
                word_of.append(word)
            word += 1
        first += len(row.sequences if row.decoders is None else row.decoders)
    values = (list(places), place_of, token_ids, word_of)
    return {name: torch.tensor(value) for name, value in zip(SCORED, values, strict=True)}
