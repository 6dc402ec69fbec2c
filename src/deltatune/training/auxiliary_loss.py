"""Masked language modelling beside the task: a small share of the loss, on further rows that need no labels.

Schick and Schütze 2021, https://arxiv.org/abs/2001.07676, section 3.2: it keeps a masked model from forgetting the
language while it learns from few rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from deltatune.core.delta import generator_for
from deltatune.core.errors import DeltatuneError
from deltatune.models.architecture import family
from deltatune.tasks.collator import PaddingCollator, collator_for
from deltatune.tasks.label_words.prompt_batches import word_sequences
from deltatune.tasks.label_words.prompt_rows import VIRTUAL
from deltatune.tasks.pretraining.masking import SHARES
from deltatune.tasks.pretraining.mlm import mask_facts, remasked, unmasked_row
from deltatune.tasks.pretraining.random_draws import random_integer
from deltatune.tasks.task import TokenRow
from deltatune.training.forward import token_logits
from deltatune.training.inference.prediction import free_positions
from deltatune.training.task_model import TaskModel, labelled_outputs
from deltatune.training.training_loop.sampler import BatchLoader

MASK_RATE = 0.15
"""Share of the tokens that are predicted, as in BERT."""
PREFIX = "mlm."
"""What the names of the further rows' tensors begin with in a batch."""


@dataclass(frozen=True)
class AuxiliaryMLM:
    """loss = (1 − w) · task + w · mean over masked tokens of −log p(token)"""

    rows: Sequence[TokenRow]
    """Rows that a masked model reads; of filled templates, the blank stays as it is."""
    weight: float = 1e-4
    """w: PET's is 1e-4."""

    def __post_init__(self) -> None:
        if not 0 < self.weight < 1:
            raise DeltatuneError(f"the weight of the masked language model must lie between 0 and 1, not {self.weight}")
        if not len(self.rows):
            raise DeltatuneError("there are no rows for the masked language model")

    def beside(
        self, model: nn.Module, loader: BatchLoader, tokenizer: PreTrainedTokenizerBase, seed: int
    ) -> tuple[nn.Module, BatchLoader]:
        """A model and its batches with this loss beside their own. What is drawn depends on seed and step alone.

        Raises DeltatuneError for models that are not masked ones, and where only a head is trained.
        """
        if not isinstance(model, TaskModel) or family(model.host.model.config) != "encoder":  # type: ignore[arg-type]
            raise DeltatuneError("a masked language model beside the task is for masked models that train on tokens")
        rows = maskable_rows(self.rows, tokenizer)
        longest, make_batch = free_positions(model.host, model.name), loader.make_batch
        collate = collator_for(model.host.model, tokenizer, rows[0], longest)

        def with_masked_rows(numbers: Sequence[int], epoch: int) -> dict[str, Tensor]:
            generator = generator_for(seed, f"mlm.{epoch}.{'.'.join(map(str, numbers))}")
            drawn = [rows[random_integer(0, len(rows) - 1, generator)] for _ in numbers]
            masked = _masked_batch(drawn, collate, generator)
            return {**make_batch(numbers, epoch), **{f"{PREFIX}{name}": tensor for name, tensor in masked.items()}}

        return WithMaskedLM(model, self.weight), BatchLoader(loader.sampler, with_masked_rows)


class WithMaskedLM(nn.Module):
    """A task's model with a masked-language-model loss on the rows whose tensors are named `mlm.*`."""

    def __init__(self, model: TaskModel, weight: float) -> None:
        super().__init__()
        self.model, self.weight = model, weight

    def forward(
        self, labels: Tensor, items: float | None = None, part: str | None = None, **batch: Tensor
    ) -> dict[str, Tensor]:
        """As `TaskModel.forward`; the passes of a step share the further loss by their items."""
        own = {name: tensor for name, tensor in batch.items() if not name.startswith(PREFIX)}
        further = {name.removeprefix(PREFIX): tensor for name, tensor in batch.items() if name.startswith(PREFIX)}
        outputs = self.model(labels, items, part, **own)
        token_labels = further.pop("labels")  # (B, T)
        read, targets = labelled_outputs(self.model.host, further, token_labels, self.model.uses_bfloat16)
        loss = F.cross_entropy(token_logits(read), targets, reduction="sum") / max(1, len(targets))
        own_items = self.model.task.items(labels)
        share = 1.0 if items is None else own_items / items
        return {**outputs, "loss": (1 - self.weight) * outputs["loss"] + self.weight * share * loss}


def maskable_rows(rows: Sequence[TokenRow], tokenizer: PreTrainedTokenizerBase) -> list[TokenRow]:
    """Rows in which tokens can be masked: of prompt rows their longest sequence. Virtual tokens are left out."""
    facts = mask_facts(tokenizer)
    made = []
    for row in rows:
        ids, types = row["input_ids"], row.get("token_type_ids")
        if "prompt" in row:
            read = word_sequences(row, encoder_decoder=False)
            ids, types = read.sequences[-1], None if read.types is None else read.types[-1]
        real = [i for i, token in enumerate(ids) if token < VIRTUAL]
        ids = [ids[i] for i in real]
        tokens: dict[str, Any] = {"input_ids": ids, "attention_mask": [1] * len(ids)}
        if types is not None:
            tokens["token_type_ids"] = [types[i] for i in real]
        special = tokenizer.get_special_tokens_mask(ids, already_has_special_tokens=True)
        made.append(unmasked_row(tokens, [bool(flag) for flag in special], None, facts))
    return made


def _masked_batch(rows: Sequence[TokenRow], collate: PaddingCollator, generator: torch.Generator) -> dict[str, Tensor]:
    return collate([remasked(row, generator, MASK_RATE, SHARES, "count") for row in rows])
