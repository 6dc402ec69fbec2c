"""Encoded rows of an objective to batches for loops that are not ours: a DataLoader's, transformers' Trainer's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.data import get_worker_info
from transformers import PreTrainedTokenizerBase

from deltatune.core.delta import generator_for
from deltatune.tasks.batches import Collate
from deltatune.tasks.task import TokenRow
from deltatune.tasks.tokens import padding_id


@dataclass
class Collator:
    """Draws what is asked for of each row anew, then pads on the right; the same calls give the same batches."""

    draw: Callable[[TokenRow, torch.Generator], TokenRow]
    tokenizer: PreTrainedTokenizerBase
    seed: int = 0
    calls: int = field(default=0, init=False)
    """Batches made so far. In a loader's worker it begins anew, and the worker's own seed tells epochs apart."""

    def __call__(self, rows: Sequence[TokenRow]) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask`, maybe `token_type_ids`, all (B, T), and `labels`; IGNORED where none is."""
        worker = get_worker_info()
        generator = generator_for(self.seed, f"collator.{worker.seed if worker else 0}.{self.calls}")
        self.calls += 1
        fill = {"input_ids": padding_id(self.tokenizer), "attention_mask": 0, "token_type_ids": 0}
        drawn = [self.draw(row, generator) for row in rows]
        batch = Collate({name: value for name, value in fill.items() if name in drawn[0]})(drawn)
        if "pair_labels" in batch:
            batch["next_sentence_label"] = batch.pop("pair_labels")
        return batch
