"""Batches of rows of similar length, the same for the same seed, and their parts for each process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

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
        rows = torch.randperm(len(self.lengths), generator=generator).tolist()
        size, rest = self.batch_size, len(rows) % self.batch_size
        rows, last = rows[: len(rows) - rest], rows[len(rows) - rest :]
        if self.length_grouping:
            chunk = size * SORTED_BATCHES
            chunks = [sorted(rows[i : i + chunk], key=self.lengths.__getitem__) for i in range(0, len(rows), chunk)]
            rows = [row for chunk_rows in chunks for row in chunk_rows]
        batches = [rows[i : i + size] for i in range(0, len(rows), size)]
        shuffled = [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
        return [*shuffled, *([last] if last else [])]

    def forward_passes(self, batch: Sequence[int]) -> list[list[int]]:
        """The rows of one step cut into this process's forward passes.

        No more passes than are needed for each one to have a row in some process.
        """
        size = self.processes.size
        count = min(self.accumulation, -(-len(batch) // size)) * size
        cuts = [len(batch) * i // count for i in range(count + 1)]
        return [list(batch[start:end]) for start, end in pairwise(cuts)][self.processes.rank :: size]


class MicroBatch(NamedTuple):
    """What one forward pass reads."""

    tensors: dict[str, Tensor]
    """The model's inputs and `labels`."""
    rows: int
    """Rows of the data in it. 0: the tensors are a placeholder, and their loss must not count."""


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
        return MicroBatch(tensors, len(rows))
