"""How surprised a language model is by the words that are there: negative log-likelihoods of labelled tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from deltatune.core.host import Host
from deltatune.tasks.batches import Collate
from deltatune.tasks.families import family
from deltatune.tasks.task import IGNORED, Encoded
from deltatune.training.batching import batches, device_of
from deltatune.training.words import logits_of, word_outputs

MOST_TOKENS = 4096
"""Tokens of a batch: each has logits over the whole vocabulary."""


def surprise(host: Host, encoded: Encoded, collate: Collate, bfloat16: bool) -> list[NDArray[Any]]:
    """For each piece its summed negative log-likelihood in nats and the number of labelled tokens, (2,) each."""
    found: list[Any] = [None] * len(encoded)
    longest = max(len(row["input_ids"]) for row in encoded)
    for members, batch in batches(encoded, collate, max(1, MOST_TOKENS // longest), device_of(host)):
        labels = batch.pop("labels")
        outputs, there = word_outputs(host, batch, labels, bfloat16)
        losses = F.cross_entropy(logits_of(outputs), there, reduction="none")  # (M,)
        predicted = labels[:, 1:] if family(host.model.config) == "decoder" else labels  # type: ignore[arg-type]
        whose = (predicted != IGNORED).nonzero()[:, 0]
        sums = torch.zeros(len(members), dtype=torch.float64).index_add_(0, whose.cpu(), losses.double().cpu())
        counts = torch.bincount(whose, minlength=len(members)).cpu()
        for row, total, count in zip(members, sums.tolist(), counts.tolist(), strict=True):
            found[row] = np.array([total, count])
    return found
