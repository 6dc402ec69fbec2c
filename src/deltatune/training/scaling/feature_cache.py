"""A probe's features, computed once: where nothing in the base is trained, every epoch would find the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deltatune.core.host import Host
from deltatune.tasks.collator import Collate
from deltatune.tasks.heads import Head
from deltatune.tasks.task import Task, TokenRow
from deltatune.training.forward import pooled
from deltatune.training.inference.batches import device_of, in_batches

MOST_BYTES = 2**31
"""Features that take more memory are computed anew in every epoch."""


def probed(host: Host, name: str, rows: int) -> Head | None:
    """The head of an adapter that trains nothing else and whose features for so many rows fit in memory."""
    adapter = host.adapters[name]
    if adapter.count or not isinstance(adapter.head, Head) or adapter.head.config.pooling == "none":
        return None
    return adapter.head if rows * adapter.head.config.width * 4 <= MOST_BYTES else None


@dataclass(frozen=True)
class Features:
    """Pooled vectors and labels of the rows, fetched by the batch."""

    vectors: Tensor
    """(N, D), in the head's dtype, on the base's device."""
    labels: Tensor
    """(N,)."""

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitems__(self, rows: list[int]) -> dict[str, Tensor]:
        """The batch of these rows; torch's loader asks for all of them at once."""
        return {"vectors": self.vectors[rows], "labels": self.labels[rows]}


def extract(host: Host, head: Head, rows: Sequence[TokenRow], collate: Collate, bfloat16: bool) -> Features:
    """Run the base once over the rows; it is in eval mode and the adapter acts (`predict.acting`)."""
    with torch.no_grad():  # not inference_mode: the head's backward needs these tensors
        vectors = in_batches(rows, collate, 64, device_of(host), lambda batch: pooled(host, head, batch, bfloat16))
    labels = torch.tensor([row["label"] for row in rows], device=vectors.device)
    return Features(vectors, labels)


class Probe(nn.Module):
    """The head on stored features, as a module with a loss."""

    accepts_loss_kwargs = True

    def __init__(self, head: Head, task: Task) -> None:
        super().__init__()
        self.head, self.task = head, task

    def forward(
        self, vectors: Tensor, labels: Tensor, num_items_in_batch: int | Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the loss, divided by `num_items_in_batch`, and the logits (B, C) of vectors (B, D)."""
        logits = self.head.classify(vectors)
        items = self.task.items(labels) if num_items_in_batch is None else num_items_in_batch
        return {"loss": self.task.loss(logits, labels) / items, "logits": logits}
