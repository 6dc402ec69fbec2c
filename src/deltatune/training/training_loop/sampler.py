"""Batches of rows of similar length, the same for the same seed, and their parts for each process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deltatune.core.delta import generator_for
from deltatune.training.scaling.distributed import Processes

SORTED_BATCHES = 50
"""Batches that are sorted by length together: enough to leave little padding, few enough to mix the rows."""


class BatchSampler:
    """Row numbers of each optimizer step, and of each forward pass in one process.

    The rows of a step are the same for any number of processes, which take turns at its parts. All processes make the
    same number of forward passes, so in a short last step a process may have a pass without rows.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        accumulation: int = 1,
        seed: int = 0,
        length_grouping: bool = True,
        processes: Processes | None = None,
    ) -> None:
        """`batch_size` rows make one optimizer step of all processes, in `accumulation` forward passes of each."""
        self.lengths, self.batch_size, self.accumulation = lengths, batch_size, accumulation
        self.seed, self.length_grouping, self.processes = seed, length_grouping, processes or Processes()

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass over the rows."""
        return -(-len(self.lengths) // self.batch_size)

    def batches(self, epoch: int) -> list[list[int]]:
        """Rows of each optimizer step of an epoch. Only the last step may have fewer than `batch_size`."""
        generator = generator_for(self.seed, f"order.{epoch}")
        rows = self.rows_of(epoch, generator)
        size, rest = self.batch_size, len(rows) % self.batch_size
        rows, last = rows[: len(rows) - rest], rows[len(rows) - rest :]
        if self.length_grouping:
            chunk = size * SORTED_BATCHES
            chunks = [sorted(rows[i : i + chunk], key=self.lengths.__getitem__) for i in range(0, len(rows), chunk)]
            rows = [row for chunk_rows in chunks for row in chunk_rows]
        batches = [rows[i : i + size] for i in range(0, len(rows), size)]
        shuffled = [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
        return [*shuffled, *([last] if last else [])]

    def rows_of(self, epoch: int, generator: torch.Generator) -> list[int]:
        """The rows of an epoch in random order."""
        return torch.randperm(len(self.lengths), generator=generator).tolist()

    def part(self, row: int) -> str | None:
        """The part of a mixture that a row belongs to; None where there is one task."""
        return None

    def forward_passes(self, batch: Sequence[int]) -> list[list[int]]:
        """The rows of one step cut into this process's forward passes.

        No more passes than are needed for each one to have a row in some process.
        """
        size = self.processes.size
        count = min(self.accumulation, -(-len(batch) // size)) * size
        return parts_of(batch, count)[self.processes.rank :: size]


class MixtureSampler(BatchSampler):
    """Rows of several parts, each part sampled by a share of its own; a forward pass has rows of one part alone.

    A part that is sampled less often than it has rows gives other rows in the next epoch, until all had their turn.
    """

    def __init__(
        self, parts: Mapping[str, Sequence[int]], shares: Mapping[str, float], lengths: Sequence[int], *args: Any
    ) -> None:
        """`parts`: the row numbers of each part; `shares`: its share in an epoch, which has `len(lengths)` rows."""
        super().__init__(lengths, *args)
        self.parts = {name: list(rows) for name, rows in parts.items()}
        self.quotas = {name: max(1, round(len(lengths) * shares[name])) for name in parts}
        self.part_of = {row: name for name, rows in self.parts.items() for row in rows}

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one epoch."""
        return -(-sum(self.quotas.values()) // self.batch_size)

    def part(self, row: int) -> str:
        """The part that a row belongs to."""
        return self.part_of[row]

    def rows_of(self, epoch: int, generator: torch.Generator) -> list[int]:
        """The rows of an epoch in random order."""
        rows = [row for name in self.parts for row in self._drawn(name, epoch)]
        return [rows[i] for i in torch.randperm(len(rows), generator=generator).tolist()]

    def _drawn(self, name: str, epoch: int) -> list[int]:
        """The rows of one part: the next ones of shuffles that follow each other."""
        rows, quota = self.parts[name], self.quotas[name]
        drawn: list[int] = []
        position, end = epoch * quota, (epoch + 1) * quota
        while position < end:
            shuffle, first = divmod(position, len(rows))
            order = torch.randperm(len(rows), generator=generator_for(self.seed, f"order.{name}.{shuffle}")).tolist()
            drawn += [rows[i] for i in order[first : first + end - position]]
            position += min(len(rows) - first, end - position)
        return drawn

    def forward_passes(self, batch: Sequence[int]) -> list[list[int]]:
        """The rows of one step by part, each part cut into this process's forward passes by its share of the step."""
        passes = []
        for name in self.parts:
            rows = [row for row in batch if self.part_of[row] == name]
            if rows:
                size = self.processes.size
                count = max(1, min(-(-self.accumulation * len(rows) // len(batch)), -(-len(rows) // size))) * size
                passes += parts_of(rows, count)[self.processes.rank :: size]
        return passes


def parts_of(rows: Sequence[int], count: int) -> list[list[int]]:
    """Rows cut into parts of about the same size."""
    cuts = [len(rows) * i // count for i in range(count + 1)]
    return [list(rows[start:end]) for start, end in pairwise(cuts)]


class MicroBatch(NamedTuple):
    """What one forward pass reads."""

    tensors: dict[str, Tensor]
    """The model's inputs and `labels`."""
    rows: int
    """Rows of the data in it. 0: the tensors are a placeholder, and their loss must not count."""
    part: str | None = None
    """The part of a mixture that all rows belong to."""


class BatchLoader:
    """Micro-batches of every optimizer step, made in this process without any use of the global random state."""

    def __init__(self, sampler: BatchSampler, make_batch: Callable[[Sequence[int], int], dict[str, Tensor]]) -> None:
        """`make_batch` makes the tensors of (row numbers, epoch)."""
        self.sampler, self.make_batch = sampler, make_batch

    def steps(self, first: int, last: int) -> Iterator[tuple[int, list[MicroBatch]]]:
        """(step, its micro-batches) of the optimizer steps from `first` to `last`, counted from 1 over all epochs."""
        step = first
        while step <= last:
            epoch, done = divmod(step - 1, self.sampler.steps_per_epoch)
            for batch in self.sampler.batches(epoch)[done : done + last - step + 1]:
                yield step, [self._micro_batch(rows, epoch) for rows in self.sampler.forward_passes(batch)]
                step += 1

    def _micro_batch(self, rows: Sequence[int], epoch: int) -> MicroBatch:
        tensors = self.make_batch(rows or [0], epoch)  # models take no empty batch
        tensors.pop("rows", None)  # the number of packed rows
        return MicroBatch(tensors, len(rows), self.sampler.part(next(iter(rows), 0)))
