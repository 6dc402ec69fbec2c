"""Batches of rows of similar length for inference, with results in row order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from deltatune.core.host import Host
from deltatune.tasks.collator import PaddingCollator
from deltatune.tasks.task import TokenRow, row_length


def device_of(host: Host) -> torch.device:
    """The device of the base."""
    return next(host.model.parameters()).device


def length_sorted_batches(
    rows: Sequence[TokenRow], collate: PaddingCollator, batch_size: int, device: torch.device
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Batches of rows of similar length, the longest first, each with the numbers of its rows."""
    order = sorted(range(len(rows)), key=lambda row: row_length(rows[row]), reverse=True)
    for start in range(0, len(order), batch_size):
        numbers = order[start : start + batch_size]
        batch = collate([rows[number] for number in numbers])
        yield numbers, {name: tensor.to(device) for name, tensor in batch.items()}


def map_batches(
    rows: Sequence[TokenRow],
    collate: PaddingCollator,
    batch_size: int,
    device: torch.device,
    compute: Callable[[dict[str, Tensor]], Tensor],
) -> Tensor:
    """Apply `compute` to batches of rows of similar length; return its results (N, ...) in row order."""
    order, parts = [], []
    for numbers, batch in length_sorted_batches(rows, collate, batch_size, device):
        batch.pop("labels", None)
        parts.append(compute(batch))
        order += numbers
    sorted_results = torch.cat(parts)
    results = torch.empty_like(sorted_results)
    results[torch.tensor(order, device=results.device)] = sorted_results
    return results


def row_logits(
    rows: Sequence[TokenRow],
    collate: PaddingCollator,
    batch_size: int,
    device: torch.device,
    compute: Callable[[dict[str, Tensor]], Tensor],
) -> list[NDArray[Any]]:
    """Logits (C,) or (T, C) of each row in float32, without padding, in row order."""
    logits: list[Any] = [None] * len(rows)
    for numbers, batch in length_sorted_batches(rows, collate, batch_size, device):
        batch.pop("labels", None)
        batch_logits = compute(batch).float().cpu().numpy()
        for number, values in zip(numbers, batch_logits, strict=True):
            length = row_length(rows[number])
            logits[number] = values if values.ndim == 1 else values[-length:] if collate.left else values[:length]
    return logits
