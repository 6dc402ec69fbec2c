"""How surprised a language model is by the words that are there: negative log-likelihoods of labelled tokens."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from deltatune.core.host import Host
from deltatune.models.architecture import family
from deltatune.tasks.collator import Collate
from deltatune.tasks.task import IGNORED, Encoded
from deltatune.training.inference.batches import batches, device_of
from deltatune.training.task_model import logits_of, word_outputs

MOST_TOKENS = 4096
"""Tokens of a batch: each has logits over the whole vocabulary."""


def surprise(host: Host, encoded: Encoded, collate: Collate, bfloat16: bool) -> list[NDArray[Any]]:
    """For each piece its summed negative log-likelihood in nats, its labelled tokens, and those that were likeliest."""
    found: list[Any] = [None] * len(encoded)
    longest = max(len(row["input_ids"]) for row in encoded)
    for members, batch in batches(encoded, collate, max(1, MOST_TOKENS // longest), device_of(host)):
        labels, pairs = batch.pop("labels"), batch.pop("pair_labels", None)
        outputs, there = word_outputs(host, batch, labels, bfloat16)
        logits = logits_of(outputs)
        losses = F.cross_entropy(logits, there, reduction="none")  # (M,)
        each = torch.stack([losses, torch.ones_like(losses), (logits.argmax(-1) == there).float()], 1).cpu().double()
        predicted = labels[:, 1:] if family(host.model.config) == "decoder" else labels  # type: ignore[arg-type]
        whose = (predicted != IGNORED).nonzero()[:, 0]
        sums = torch.zeros(len(members), 3, dtype=torch.float64).index_add_(0, whose.cpu(), each)
        if pairs is not None:  # of a pair of passages: its own nats, and 1 where it is judged right
            judged = outputs.seq_relationship_logits.float()  # (B, 2)
            own = torch.stack([F.cross_entropy(judged, pairs, reduction="none"), judged.argmax(-1) == pairs], 1)
            sums = torch.cat([sums, own.double().cpu()], 1)  # (B, 5)
        for row, total in zip(members, sums.numpy(), strict=True):
            found[row] = total  # (3,), of pairs (5,)
    return found
