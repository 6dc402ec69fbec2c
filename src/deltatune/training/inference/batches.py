"""Rows through a model in batches of similar length; results come back in row order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from deltatune.core.host import Host
from deltatune.tasks.collator import Collate
from deltatune.tasks.task import TokenRow


def device_of(host: Host) -> torch.device:
    """Where the base lives."""
    return next(host.model.parameters()).device


def in_batches(
    rows: Sequence[TokenRow],
    collate: Collate,
    batch_size: int,
    device: torch.device,
    compute: Callable[[dict[str, Tensor]], Tensor],
) -> Tensor:
    """Apply `compute` to batches of rows of similar length and return its results (N, ...) in row order."""
    order, parts = [], []
    for members, batch in batches(rows, collate, batch_size, device):
        batch.pop("labels", None)
        parts.append(compute(batch))
        order += members
    found = torch.cat(parts)
    back = torch.empty_like(found)
    back[torch.tensor(order, device=found.device)] = found
    return back


def batches(
    rows: Sequence[TokenRow], collate: Collate, batch_size: int, device: torch.device
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Batches of rows of similar length, the longest first, with the numbers of their rows."""
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]["input_ids"]), reverse=True)
    for start in range(0, len(order), batch_size):
        members = order[start : start + batch_size]
        batch = collate([rows[row] for row in members])
        yield members, {name: tensor.to(device) for name, tensor in batch.items()}


def pieces(
    rows: Sequence[TokenRow],
    collate: Collate,
    batch_size: int,
    device: torch.device,
    compute: Callable[[dict[str, Tensor]], Tensor],
) -> list[NDArray[Any]]:
    """Logits (C,) or (T, C) of each row in float32, its own tokens alone, in row order."""
    found: list[Any] = [None] * len(rows)
    for members, batch in batches(rows, collate, batch_size, device):
        batch.pop("labels", None)
        values = compute(batch).float().cpu().numpy()
        for row, logits in zip(members, values, strict=True):
            length = len(rows[row]["input_ids"])
            found[row] = logits if logits.ndim == 1 else logits[-length:] if collate.left else logits[:length]
    return found
