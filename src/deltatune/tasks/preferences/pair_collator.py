"""Batches of preference pairs: both answers of each pair as rows of one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deltatune.tasks.collator import PaddingCollator
from deltatune.tasks.task import TokenRow

REJECTED_IDS, REJECTED_LABELS = "rejected_ids", "rejected_labels"
"""The rejected answer behind its prompt, in an encoded row whose `input_ids` and `labels` are the chosen one's."""
REFERENCE = "reference"
"""Log-probabilities of both answers under the reference, where they are known: in a row two numbers, in a batch
(B, 2)."""


@dataclass(frozen=True)
class PairCollator(PaddingCollator):
    """Pads B pairs into 2B rows, the chosen answers first."""

    def __call__(self, rows: Sequence[TokenRow]) -> dict[str, Tensor]:
        """`input_ids` and `labels` (2B, T), and the reference's log-probabilities (B, 2) where rows have them."""
        batch = super().__call__(answer_rows(rows))
        if REFERENCE in rows[0]:
            batch[REFERENCE] = torch.tensor([row[REFERENCE] for row in rows], dtype=torch.float32)
        return batch


def answer_rows(rows: Sequence[TokenRow]) -> list[TokenRow]:
    """The chosen answers of all pairs, then the rejected ones: 2B rows with labels."""
    chosen = [answer_row(row["input_ids"], row["labels"]) for row in rows]
    return chosen + [answer_row(row[REJECTED_IDS], row[REJECTED_LABELS]) for row in rows]


def answer_row(ids: list[int], labels: list[int]) -> TokenRow:
    """An answer behind its prompt."""
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}
