"""How surprised a language model is by the words that are there: negative log-likelihoods of labelled tokens."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from deltatune.core.host import Host
from deltatune.models.architecture import family
from deltatune.tasks.collator import Collate
from deltatune.tasks.task import IGNORED, Encoded, LanguageModelTask
from deltatune.training.inference.batches import batches, device_of
from deltatune.training.task_model import logits_of, word_outputs

MOST_TOKENS = 4096
"""Tokens of a batch: each has logits over the whole vocabulary."""


def surprise(
    host: Host, task: LanguageModelTask, encoded: Encoded, collate: Collate, bfloat16: bool
) -> list[NDArray[Any]]:
    """Of each piece the summed negative log-likelihood in nats, the labelled tokens, and those that were the likeliest.

    The numbers of `task.extra_statistics` follow, where there are any.
    """
    found: list[Any] = [None] * len(encoded)
    longest = max(len(row["input_ids"]) for row in encoded)
    for members, batch in batches(encoded, collate, max(1, MOST_TOKENS // longest), device_of(host)):
        labels = batch.pop("labels")
        extra_labels = {name: batch.pop(name) for name in task.extra_labels}
        outputs, there = word_outputs(host, batch, labels, bfloat16)
        logits = logits_of(outputs)
        losses = F.cross_entropy(logits, there, reduction="none")  # (M,)
        each = torch.stack([losses, torch.ones_like(losses), (logits.argmax(-1) == there).float()], 1).cpu().double()
        predicted = labels[:, 1:] if family(host.model.config) == "decoder" else labels  # type: ignore[arg-type]
        whose = (predicted != IGNORED).nonzero()[:, 0]
        sums = torch.zeros(len(members), 3, dtype=torch.float64).index_add_(0, whose.cpu(), each)
        extra = task.extra_statistics(outputs, extra_labels)
        if extra is not None:
            sums = torch.cat([sums, extra.double().cpu()], 1)  # (B, 3 + K)
        for row, total in zip(members, sums.numpy(), strict=True):
            found[row] = total
    return found
