"""Batches of prompt rows: their sequences side by side, and which states predict the tokens of which words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deltatune.tasks.collator import PaddingCollator
from deltatune.tasks.label_words.prompt_rows import VIRTUAL
from deltatune.tasks.task import TokenRow

SCORED = ("places", "place_of", "token_ids", "word_of")
"""Names in a batch that say what is scored; the model's forward does not get them."""


@dataclass(frozen=True)
class PromptCollator(PaddingCollator):
    """Pads the sequences of B rows to R sequences (R, T): R is B times the sequences of a row.

    `places` (M, 2) are the states that are read, as (sequence, position); the s-th of S scored tokens is `token_ids[s]`
    at `places[place_of[s]]`, and belongs to word `word_of[s]` of the B · W words.
    """

    vocabulary: int = 0
    """Rows of the model's embedding: virtual ids follow."""

    def __call__(self, rows: Sequence[TokenRow]) -> dict[str, Tensor]:
        """Return the batch; with `labels` (B,) where the rows have them."""
        sequences = [self._with_virtual_ids(ids) for row in rows for ids in row["sequences"]]
        width = self.width(sequences)
        inputs = {"input_ids": sequences, "attention_mask": [[1] * len(each) for each in sequences]}
        if "types" in rows[0]:
            inputs["token_type_ids"] = [types for row in rows for types in row["types"]]
        batch = {name: self.pad(inputs[name], fill, width) for name, fill in self.fill.items()}
        decodes = "decoder" in rows[0]
        if decodes:
            decoder = [ids for row in rows for ids in row["decoder"]]
            longest = max(map(len, decoder))
            batch["decoder_ids"] = torch.tensor(
                [[*ids, *[self.fill["input_ids"]] * (longest - len(ids))] for ids in decoder]
            )
        offsets = [width - len(each) if self.left and not decodes else 0 for each in sequences]
        batch |= self._scored(rows, offsets)
        if "label" in rows[0]:
            batch["labels"] = torch.tensor([row["label"] for row in rows])
        return batch

    def _with_virtual_ids(self, ids: Sequence[int]) -> list[int]:
        return [token if token < VIRTUAL else token - VIRTUAL + self.vocabulary for token in ids]

    def _scored(self, rows: Sequence[TokenRow], offsets: Sequence[int]) -> dict[str, Tensor]:
        places: dict[tuple[int, int], int] = {}
        place_of, token_ids, word_of = [], [], []
        first, word = 0, 0
        for row in rows:
            for tokens in row["scored"]:
                for number, position, token in tokens:
                    place = (first + number, position + offsets[first + number])
                    place_of.append(places.setdefault(place, len(places)))
                    token_ids.append(token)
                    word_of.append(word)
                word += 1
            first += len(row["sequences"])
        values = (list(places), place_of, token_ids, word_of)
        return {name: torch.tensor(value) for name, value in zip(SCORED, values, strict=True)}
