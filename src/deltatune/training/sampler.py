"""The order of the rows: batches of similar length, the same for the same seed, whatever else is drawn at random."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from deltatune.core.delta import generator_for
from deltatune.training.scaling.distributed import World

REACH = 50
"""Batches that are sorted by length together: enough to leave little padding, few enough to mix the rows."""


class Order(Sampler[list[int]]):
    """Row numbers of each forward pass of an epoch in one process. `epoch` is set by the Trainer.

    The rows of a step are the same for any number of processes, which take turns at its parts. All of them make the
    same number of passes, so in a short last step one may have a pass without rows.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        pieces: int,
        seed: int,
        grouped: bool,
        world: World | None = None,
    ) -> None:
        """`batch_size` rows make one optimiser step of all processes, in `pieces` forward passes of each."""
        self.lengths, self.batch_size, self.pieces = lengths, batch_size, pieces
        self.seed, self.grouped, self.epoch = seed, grouped, 0
        self.world = world or World()

    def __len__(self) -> int:
        """Forward passes an epoch."""
        whole, rest = divmod(len(self.lengths), self.batch_size)
        return whole * self.passes(self.batch_size) + self.passes(rest)

    def passes(self, rows: int) -> int:
        """Forward passes of a step: no more than are needed for every one to have a row in some process."""
        return min(self.pieces, -(-rows // self.world.size))

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches():
            count = self.passes(len(batch)) * self.world.size
            cuts = [len(batch) * i // count for i in range(count + 1)]
            yield from [batch[a:b] for a, b in pairwise(cuts)][self.world.rank :: self.world.size]

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
        collate = partial(some, rows, collate)
        super().__init__(rows, batch_sampler=order, collate_fn=collate, generator=torch.Generator())
        self.order = order

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer at the start of each epoch."""
        self.order.set_epoch(epoch)


def some(rows: Any, collate: Callable[[Any], dict[str, Tensor]], members: Any) -> dict[str, Tensor]:
    """The batch of some rows. For none it is the first row's, counted as 0 rows: models take no empty batch."""
    if isinstance(members, list) and not members:
        return {**collate([rows[0]]), "rows": torch.tensor(0)}
    return collate(members)
