"""Cached features of a linear probe: with a frozen base, every epoch would compute the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deltatune.core.host import Host
from deltatune.tasks.collator import PaddingCollator
from deltatune.tasks.heads import Head
from deltatune.tasks.task import Task, TokenRow
from deltatune.training.forward import pooled_features
from deltatune.training.inference.batches import device_of, map_batches

MOST_BYTES = 2**31
"""Features that take more memory are computed again in every epoch."""


def cacheable_head(host: Host, name: str, rows: int) -> Head | None:
    """The head of an adapter that trains nothing else, if the features of this many rows fit in memory."""
    adapter = host.adapters[name]
    if adapter.count or not isinstance(adapter.head, Head) or adapter.head.config.pooling == "none":
        return None
    return adapter.head if rows * adapter.head.config.width * 4 <= MOST_BYTES else None


@dataclass(frozen=True)
class Features:
    """Pooled vectors and labels of all rows."""

    vectors: Tensor
    """(N, D), in the head's dtype, on the base's device."""
    labels: Tensor
    """(N,)."""

    def batch(self, rows: Sequence[int], epoch: int = 0) -> dict[str, Tensor]:
        """Features and labels of these rows, the same in every epoch."""
        index = list(rows)
        return {"vectors": self.vectors[index], "labels": self.labels[index]}


def extract_features(
    host: Host, head: Head, rows: Sequence[TokenRow], collate: PaddingCollator, bfloat16: bool
) -> Features:
    """Run the base once over the rows; it is in evaluation mode, with the adapter active (`Host.using`)."""
    with torch.no_grad():  # not inference_mode: the head's backward needs these tensors
        vectors = map_batches(
            rows, collate, 64, device_of(host), lambda batch: pooled_features(host, head, batch, bfloat16)
        )
    labels = torch.tensor([row["label"] for row in rows], device=vectors.device)
    return Features(vectors, labels)


class FeatureModel(nn.Module):
    """The head on cached features, as a module that returns the loss."""

    def __init__(self, head: Head, task: Task) -> None:
        super().__init__()
        self.head, self.task = head, task

    def forward(self, vectors: Tensor, labels: Tensor, items: float | None = None) -> dict[str, Tensor]:
        """Return the loss, divided by `items` (default: the batch's own), and the logits (B, C) of vectors (B, D)."""
        logits = self.head.classify(vectors)
        loss = self.task.loss(logits, labels) / (self.task.items(labels) if items is None else items)
        return {"loss": loss, "logits": logits}
