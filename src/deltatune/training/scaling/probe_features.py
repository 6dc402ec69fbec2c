"""Features of linear probes: the vectors that a head reads, which are the same for every epoch, rate, seed and head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deltatune.core.host import Host
from deltatune.tasks.heads import Head
from deltatune.tasks.task import Task, row_length
from deltatune.training.forward import pooled_features
from deltatune.training.inference.batches import device_of, length_sorted_batches, map_batches
from deltatune.training.scaling.feature_cache import CACHE, inputs_of, key_of, row_spans
from deltatune.training.scaling.row_states import RepeatedRows


def probe_head(host: Host, name: str, rows: int) -> Head | None:
    """The head of an adapter that trains nothing else, if the vectors of this many rows may be kept."""
    adapter = host.adapters[name]
    if adapter.count or host.merged or not isinstance(adapter.head, Head) or adapter.head.config.pooling == "none":
        return None
    return adapter.head if CACHE.has_room(rows * adapter.head.config.width * 4, device_of(host)) else None


class Vectors:
    """Pooled vectors (N, D) of a list of rows, as the cache keeps them."""

    def __init__(self, vectors: Tensor) -> None:
        self.vectors = vectors
        self.device, self.bytes, self.users = vectors.device, vectors.numel() * vectors.element_size(), 0


def pooled_vectors(host: Host, head: Head, repeated: RepeatedRows, bfloat16: bool) -> Tensor | None:
    """The vectors (N, D) that a head reads of the base, kept for the next training or prediction.

    None for rows that may not be read again (`repeated.certain`), when they are read for the first time. The base is
    in evaluation mode, with the adapter active (`Host.using`).
    """
    device = device_of(host)
    batches = [batch for _, batch in length_sorted_batches(repeated.rows, repeated.collate, repeated.group, device)]
    spans = [row_spans(inputs_of(batch)) if is_text(batch) else None for batch in batches]
    key = None
    if all(members is not None for members in spans):
        listed = [span for members in spans for span in members or ()]
        widths = [tuple(batch["input_ids"].shape) for batch in batches]
        numbers = [row_length(row) for row in repeated.rows]  # the order of the rows
        what = ("pooled", head.config.pooling, bfloat16, widths, [first for _, first, _ in listed], numbers)
        key = key_of(host, what, (row for row, _, _ in listed))
    if not repeated.certain and (key is None or not CACHE.read_before(key)):
        return None
    entry = None if key is None else CACHE.get(key)
    if entry is None:
        with torch.inference_mode(False), torch.no_grad():  # a training may read them: its backward needs them
            vectors = map_batches(
                repeated.rows,
                repeated.collate,
                repeated.group,
                device,
                lambda b: pooled_features(host, head, b, bfloat16),
            )
        entry = Vectors(vectors)
        if key is not None:
            CACHE.add(key, entry)
    assert isinstance(entry, Vectors)
    return entry.vectors


def is_text(batch: Mapping[str, Tensor]) -> bool:
    """Whether a batch is tokens under a mask, which tell its rows apart."""
    return "input_ids" in batch and "attention_mask" in batch


def vector_logits(head: Head, vectors: Tensor, repeated: RepeatedRows) -> list[NDArray[Any]]:
    """Logits (C,) of each row by a head, in the batches in which the base would be run."""
    order = sorted(range(len(vectors)), key=lambda row: row_length(repeated.rows[row]), reverse=True)
    logits: list[Any] = [None] * len(vectors)
    for start in range(0, len(order), repeated.group):
        numbers = order[start : start + repeated.group]
        for number, values in zip(numbers, head.classify(vectors[numbers]).float().cpu().numpy(), strict=True):
            logits[number] = values
    return logits


@dataclass(frozen=True)
class Features:
    """Pooled vectors and labels of all training rows."""

    vectors: Tensor
    """(N, D), in the head's dtype, on the base's device."""
    labels: Tensor
    """(N,)."""

    def batch(self, rows: Sequence[int], epoch: int = 0) -> dict[str, Tensor]:
        """Features and labels of these rows, the same in every epoch."""
        index = list(rows)
        return {"vectors": self.vectors[index], "labels": self.labels[index]}


def extract_features(host: Host, head: Head, repeated: RepeatedRows, bfloat16: bool) -> Features:
    """Vectors and labels of training rows; the base is in evaluation mode, with the adapter active (`Host.using`)."""
    vectors = pooled_vectors(host, head, repeated, bfloat16)
    assert vectors is not None  # training rows are certain to be read
    return Features(vectors, torch.tensor([row["label"] for row in repeated.rows], device=vectors.device))


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
