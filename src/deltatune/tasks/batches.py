"""Encoded rows to tensors: dynamic padding, on the tokenizer's side, with only what the model's forward takes."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from deltatune.tasks.task import TokenRow
from deltatune.tasks.tokens import padding_id

MULTIPLE = 8
"""Rows are padded to a multiple of this: matrix units work in tiles, and fewer distinct shapes are compiled."""


@dataclass(frozen=True)
class Collate:
    """Pads a list of encoded rows into `{name: (B, T)}` and, where they have labels, `labels` (B,)."""

    fill: dict[str, int]
    """Names of the inputs to make and what fills each behind (or before) a row's own."""
    left: bool = False
    """Padding comes first."""
    longest: int | None = None
    """Never pad beyond this many tokens: the model may have no positions there."""

    def __call__(self, rows: Sequence[TokenRow]) -> dict[str, Tensor]:
        """Return the batch; B rows padded to the longest, rounded up to a multiple of 8."""
        longest = max(len(row["input_ids"]) for row in rows)
        width = -(-longest // MULTIPLE) * MULTIPLE
        if self.longest is not None:
            width = max(longest, min(width, self.longest))
        batch = {name: self._pad([row[name] for row in rows], fill, width) for name, fill in self.fill.items()}
        if "label" in rows[0]:
            batch["labels"] = torch.tensor([row["label"] for row in rows])
        return batch

    def _pad(self, values: list[list[int]], fill: int, width: int) -> Tensor:
        if self.left:
            return torch.tensor([[fill] * (width - len(row)) + row for row in values])  # (B, T)
        return torch.tensor([row + [fill] * (width - len(row)) for row in values])  # (B, T)


def collate_for(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, example: TokenRow, longest: int | None = None
) -> Collate:
    """The Collate of this model and tokenizer, for rows like `example`."""
    fill = {"input_ids": padding_id(tokenizer), "attention_mask": 0}
    fill["token_type_ids"] = int(getattr(tokenizer, "pad_token_type_id", 0) or 0)
    accepted = {"input_ids", "attention_mask", *inspect.signature(model.forward).parameters}
    fill = {name: value for name, value in fill.items() if name in example and name in accepted}
    return Collate(fill, left=tokenizer.padding_side == "left", longest=longest)
