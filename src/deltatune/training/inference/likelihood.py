"""Negative log-likelihoods of labelled tokens, summed for each row."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from deltatune.core.host import Host
from deltatune.models.architecture import family
from deltatune.tasks.collator import PaddingCollator
from deltatune.tasks.task import IGNORED, Encoded, LanguageModelTask
from deltatune.training.forward import token_logits
from deltatune.training.inference.batches import device_of, length_sorted_batches
from deltatune.training.task_model import labelled_outputs

MAX_BATCH_TOKENS = 4096
"""Tokens of a batch: each has logits over the whole vocabulary."""


def likelihood_rows(encoded: Encoded) -> int:
    """Rows of a batch."""
    return max(1, MAX_BATCH_TOKENS // max(len(row["input_ids"]) for row in encoded))


def negative_log_likelihoods(
    host: Host, task: LanguageModelTask, encoded: Encoded, collate: PaddingCollator, bfloat16: bool
) -> list[NDArray[Any]]:
    """For each encoded row: negative log-likelihood in nats, labelled tokens, and tokens predicted correctly, (3,).

    The numbers of `task.extra_statistics` follow, if there are any: (3 + K,).
    """
    statistics: list[Any] = [None] * len(encoded)
    batch_size = likelihood_rows(encoded)
    for numbers, batch in length_sorted_batches(encoded, collate, batch_size, device_of(host)):
        labels = batch.pop("labels")
        extra_labels = {name: batch.pop(name) for name in task.extra_labels}
        outputs, targets = labelled_outputs(host, batch, labels, bfloat16, bool(extra_labels))
        logits = token_logits(outputs)  # (M, V)
        losses = F.cross_entropy(logits, targets, reduction="none")  # (M,)
        correct = (logits.argmax(-1) == targets).float()
        per_token = torch.stack([losses, torch.ones_like(losses), correct], 1).cpu().double()  # (M, 3)
        predicted = labels[:, 1:] if family(host.model.config) == "decoder" else labels  # type: ignore[arg-type]
        row_of_token = (predicted != IGNORED).nonzero()[:, 0].cpu()  # (M,)
        per_row = torch.zeros(len(numbers), 3, dtype=torch.float64).index_add_(0, row_of_token, per_token)
        extra = task.extra_statistics(outputs, {**extra_labels, "labels": targets})
        if extra is not None:
            per_row = torch.cat([per_row, extra.double().cpu()], 1)  # (B, 3 + K)
        for number, values in zip(numbers, per_row.numpy(), strict=True):
            statistics[number] = values
    return statistics
