"""Several processes on one run: every one holds the base and the adapter, and does its share of each step's rows.

The gradients of the adapter are few, so they are summed in one go after a step's last backward pass.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers.utils.import_utils import is_accelerate_available

from deltatune.core.errors import DeltatuneError, raise_all

T = TypeVar("T")
CPU = torch.device("cpu")
BUCKET = 2**24
"""Gradients are joined up to so many values: one message instead of hundreds, and little memory beside them."""
SHARDS, MIXED = "ACCELERATE_USE_FSDP", "ACCELERATE_MIXED_PRECISION"
"""What `accelerate launch --use_fsdp` and `--mixed_precision` set."""
UNUSED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
}
"""What else it may be told, by the variable it sets."""


@dataclass(frozen=True)
class World:
    """The processes of a run, and which of them this is. Alone, everything here does nothing."""

    rank: int = 0
    """0 to size - 1; process 0 writes files and reports."""
    size: int = 1
    """How many processes there are."""
    device: torch.device = CPU
    """Where this process computes."""

    @property
    def first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    def sums(self, *counts: int) -> list[int]:
        """Each count summed over the processes."""
        if self.size == 1:
            return list(counts)
        found = torch.tensor(counts, device=self.device)
        dist.all_reduce(found)
        return [int(count) for count in found.tolist()]

    def told(self, value: T) -> T:
        """What process 0 has, in all of them."""
        held = [value if self.first else None]
        if self.size > 1:
            dist.broadcast_object_list(held, src=0, device=self.device)
        return held[0]  # type: ignore[return-value]  # every entry is process 0's now

    def gathered(self, value: T) -> list[T]:
        """What each process has, by rank."""
        found: list[Any] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(found, value)
        return found

    def copy_(self, tensors: Sequence[Tensor]) -> None:
        """Give all processes the values that process 0 has."""
        for tensor in tensors if self.size > 1 else ():
            dist.broadcast(tensor.detach(), src=0)

    def check_agree(self, facts: Mapping[str, Any]) -> None:
        """Raise DeltatuneError if the processes were not started on the same run, naming every difference."""
        everyone = self.gathered({name: repr(value) for name, value in facts.items()})
        wrong = {name: r for r, other in enumerate(everyone) for name in facts if other[name] != everyone[0][name]}
        raise_all(
            [
                f"{name}: process 0 has {everyone[0][name]}, process {r} {everyone[r][name]}"
                for name, r in wrong.items()
            ],
            "the processes of this run differ; load the same model and data in each, with the same seeds:",
        )

    def average_gradients_(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace gradients by their mean over the processes. Where some have none they count as zero."""
        if self.size == 1:
            return
        with_gradient = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32, device=self.device)
        dist.all_reduce(with_gradient)
        found = []
        for parameter, count in zip(parameters, with_gradient.tolist(), strict=True):
            if count and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if parameter.grad is not None:
                found.append(parameter.grad)
        for bucket in buckets(found):
            self._average_(bucket)

    def _average_(self, tensors: Sequence[Tensor]) -> None:
        if len(tensors) == 1 and tensors[0].is_contiguous():
            dist.all_reduce(tensors[0])
            tensors[0].div_(self.size)
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        parts = torch.split(flat.div_(self.size), [tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


def buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one dtype side by side, up to BUCKET values together."""
    held: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if held and (held[0].dtype != tensor.dtype or size + tensor.numel() > BUCKET):
            yield held
            held, size = [], 0
        held.append(tensor)
        size += tensor.numel()
    if held:
        yield held


def join(device: torch.device) -> World:
    """Meet the other processes that torchrun or `accelerate launch` has started; alone, a World of one.

    Raises DeltatuneError if two of them would compute on the same GPU.
    """
    if not is_accelerate_available():
        raise DeltatuneError("training needs accelerate: pip install 'deltatune[train]'")
    from accelerate import PartialState  # type: ignore[import-untyped]

    if int(os.environ.get("WORLD_SIZE", "1")) == 1 and not (dist.is_available() and dist.is_initialized()):
        return World(device=device)
    state = PartialState(cpu=device.type == "cpu")
    world = World(int(state.process_index), int(state.num_processes), device)
    check_places(world.gathered((socket.gethostname(), str(device), torch.cuda.device_count())))
    return world


def check_places(places: Sequence[tuple[str, str, int]]) -> None:
    """Raise DeltatuneError unless each of (host, device, GPUs there) has a GPU of its own."""
    for rank, (host, device, count) in enumerate(places):
        other = next(r for r, place in enumerate(places) if place[:2] == (host, device))
        if other != rank and not device.startswith("cpu"):
            raise DeltatuneError(
                f"processes {other} and {rank} both have the model on {device} of {host}, which has {count} GPUs; put "
                "it on the process's own: model.to(f\"cuda:{os.environ['LOCAL_RANK']}\"), and start no more processes "
                "than there are GPUs"
            )


def check_launch(bfloat16: bool) -> None:
    """Raise DeltatuneError for what `accelerate launch` was told to do and training here would not do.

    `bfloat16`: whether the base computes in it.
    """
    told = [what for variable, what in UNUSED.items() if os.environ.get(variable, "").lower() == "true"]
    problems = [
        f"accelerate is told to use {what}, which deltatune does not; start with torchrun, or with accelerate's "
        "--multi_gpu or --use_fsdp --fsdp_version 2"
        for what in told
    ]
    mixed = os.environ.get(MIXED, "no").lower()
    if mixed not in ("no", "bf16") or (mixed == "bf16" and not bfloat16):
        problems.append(
            f"accelerate is told --mixed_precision {mixed}, but Settings(precision='float32' or 'bfloat16') decides "
            f"how the base computes, {'' if bfloat16 else 'and not '}in bfloat16 here; start with --mixed_precision no"
        )
    raise_all(problems)


@contextmanager
def by_hand() -> Iterator[None]:
    """While this lasts, accelerate does not see that it should shard: it would spread the adapter too."""
    asked = os.environ.pop(SHARDS, None)
    try:
        yield
    finally:
        if asked is not None:
            os.environ[SHARDS] = asked
