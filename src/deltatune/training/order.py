"""The order of the rows: batches of similar length, the same for the same seed, whatever else is drawn at random."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from deltatune.core.delta import generator_for

REACH = 50
"""Batches that are sorted by length together: enough to leave little padding, few enough to mix the rows."""


class Order(Sampler[list[int]]):
    """Row numbers of each forward pass of an epoch. `epoch` is set by the Trainer."""

    def __init__(self, lengths: Sequence[int], batch_size: int, pieces: int, seed: int, grouped: bool) -> None:
        """`batch_size` rows make one optimiser step, in `pieces` forward passes."""
        self.lengths, self.batch_size, self.pieces = lengths, batch_size, pieces
        self.seed, self.grouped, self.epoch = seed, grouped, 0

    def __len__(self) -> int:
        """Forward passes an epoch."""
        whole, rest = divmod(len(self.lengths), self.batch_size)
        return whole * self.pieces + min(rest, self.pieces)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches():
            count = min(self.pieces, len(batch))
            cuts = [len(batch) * i // count for i in range(count + 1)]
            yield from (batch[a:b] for a, b in pairwise(cuts))

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order is given next."""
        self.epoch = epoch

    def batches(self) -> list[list[int]]:
        """Rows of each optimiser step. Only the last may be short, as the Trainer's counting needs it."""
        generator = generator_for(self.seed, f"order.{self.epoch}")
        rows = torch.randperm(len(self.lengths), generator=generator).tolist()
        size = self.batch_size
        rest = len(rows) % size
        rows, last = rows[: len(rows) - rest], rows[len(rows) - rest :]
        if self.grouped:
            reach = size * REACH
            near = [sorted(rows[i : i + reach], key=lambda row: self.lengths[row]) for i in range(0, len(rows), reach)]
            rows = [row for part in near for row in part]
        found = [rows[i : i + size] for i in range(0, len(rows), size)]
        mixed = [found[i] for i in torch.randperm(len(found), generator=generator).tolist()]
        return [*mixed, *([last] if last else [])]


class Drawn:
    """Rows of which part is drawn anew in every epoch, such as masked tokens: by seed, epoch and row alone."""

    def __init__(self, rows: Sequence[Any], draw: Callable[[Any, torch.Generator], Any], order: Order) -> None:
        self.rows, self.draw, self.order = rows, draw, order

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Any:
        generator = generator_for(self.order.seed, f"draw.{self.order.epoch}.{row}")
        return self.draw(self.rows[row], generator)


class Batches(DataLoader[Any]):
    """A loader in this process that draws nothing from the global random state and tells its order the epoch."""

    def __init__(self, rows: Any, order: Order, collate: Callable[[Any], dict[str, Tensor]]) -> None:
        super().__init__(rows, batch_sampler=order, collate_fn=collate, generator=torch.Generator())
        self.order = order

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer at the start of each epoch."""
        self.order.set_epoch(epoch)
