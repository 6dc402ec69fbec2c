"""Several processes in one run: each holds the base and the adapter and computes its part of each step's rows.

An adapter has few gradients, so they are summed in one message after a step's last backward pass.
"""

from __future__ import annotations

import atexit
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
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
"""Gradients are joined up to this many values: one message instead of hundreds, and little extra memory."""
FSDP, MIXED_PRECISION = "ACCELERATE_USE_FSDP", "ACCELERATE_MIXED_PRECISION"
"""The variables that `accelerate launch --use_fsdp` and `--mixed_precision` set."""
UNSUPPORTED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
}
"""What `accelerate launch` may also ask for, by the variable it sets."""


@dataclass(frozen=True)
class Processes:
    """The processes of a run, and which of them this is. With one process, every method does nothing."""

    rank: int = 0
    """0 to size - 1; process 0 writes files and reports."""
    size: int = 1
    """Number of processes."""
    device: torch.device = CPU
    """Where this process computes."""

    @property
    def is_main(self) -> bool:
        """Whether this is process 0, which writes files and reports."""
        return self.rank == 0

    def sum_counts(self, *counts: int) -> list[int]:
        """Each count summed over the processes."""
        if self.size == 1:
            return list(counts)
        sums = torch.tensor(counts, device=self.device)
        dist.all_reduce(sums)
        return [int(count) for count in sums.tolist()]

    def sum_(self, tensor: Tensor) -> Tensor:
        """Replace a tensor by its sum over the processes, and return it."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def broadcast(self, value: T) -> T:
        """The value that process 0 has."""
        values = [value if self.is_main else None]
        if self.size > 1:
            dist.broadcast_object_list(values, src=0, device=self.device)
        return values[0]  # type: ignore[return-value]  # every process has process 0's now

    def all_gather(self, value: T) -> list[T]:
        """The value of each process, by rank."""
        values: list[Any] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def broadcast_tensors_(self, tensors: Sequence[Tensor]) -> None:
        """Give the tensors of all processes the values that process 0 has."""
        for tensor in tensors if self.size > 1 else ():
            dist.broadcast(tensor.detach(), src=0)

    def check_equal(self, facts: Mapping[str, Any]) -> None:
        """Raise DeltatuneError if the processes were not started on the same run, naming every difference."""
        by_rank = self.all_gather({name: repr(value) for name, value in facts.items()})
        different = {name: r for r, other in enumerate(by_rank) for name in facts if other[name] != by_rank[0][name]}
        raise_all(
            [
                f"{name}: process 0 has {by_rank[0][name]}, process {r} {by_rank[r][name]}"
                for name, r in different.items()
            ],
            "the processes of this run differ; load the same model and data in each, with the same seeds:",
        )

    def sum_gradients_(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace gradients by their sum over the processes. A process without a gradient counts as zero.

        A parameter that has a gradient in no process keeps none.
        """
        if self.size == 1:
            return
        with_gradient = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32, device=self.device)
        dist.all_reduce(with_gradient)
        gradients = []
        for parameter, count in zip(parameters, with_gradient.tolist(), strict=True):
            if count and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if parameter.grad is not None:
                gradients.append(parameter.grad)
        for bucket in buckets(gradients):
            _sum_bucket_(bucket)


def _sum_bucket_(tensors: Sequence[Tensor]) -> None:
    """Sum tensors of one dtype over the processes, in one message."""
    if len(tensors) == 1 and tensors[0].is_contiguous():
        dist.all_reduce(tensors[0])
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))


def buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Consecutive tensors of one dtype, of up to BUCKET values together."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and (bucket[0].dtype != tensor.dtype or size + tensor.numel() > BUCKET):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    if bucket:
        yield bucket


def join_processes(device: torch.device) -> Processes:
    """Join the other processes that torchrun or `accelerate launch` has started, if there are any.

    Raises DeltatuneError if two of them would compute on the same GPU.
    """
    if int(os.environ.get("WORLD_SIZE") or "1") == 1 and not (dist.is_available() and dist.is_initialized()):
        return Processes(device=device)
    if not is_accelerate_available():
        raise DeltatuneError("training in several processes needs accelerate: pip install 'deltatune[train]'")
    from accelerate import PartialState  # type: ignore[import-untyped]

    joined = dist.is_initialized()
    state = PartialState(cpu=device.type == "cpu")
    if not joined and dist.is_initialized():
        atexit.register(_leave_processes)
    processes = Processes(int(state.process_index), int(state.num_processes), device)
    check_devices(processes.all_gather((socket.gethostname(), str(device), torch.cuda.device_count())))
    return processes


def _leave_processes() -> None:
    """End the group before the interpreter does: threads that are left then can abort a process that has finished."""
    if dist.is_initialized():
        dist.destroy_process_group()


def check_devices(devices: Sequence[tuple[str, str, int]]) -> None:
    """Raise DeltatuneError unless each process's (host, device, GPUs of the host) names a GPU of its own."""
    for rank, (host, device, count) in enumerate(devices):
        other = next(r for r, entry in enumerate(devices) if entry[:2] == (host, device))
        if other != rank and not device.startswith("cpu"):
            raise DeltatuneError(
                f"processes {other} and {rank} both have the model on {device} of {host}, which has {count} GPUs; put "
                "it on the process's own: model.to(f\"cuda:{os.environ['LOCAL_RANK']}\"), and start no more processes "
                "than there are GPUs"
            )


def check_launch(bfloat16: bool) -> None:
    """Raise DeltatuneError for options of `accelerate launch` that training here would not follow.

    `bfloat16`: whether the base computes in bfloat16.
    """
    unsupported = [what for variable, what in UNSUPPORTED.items() if os.environ.get(variable, "").lower() == "true"]
    problems = [
        f"accelerate is told to use {what}, which deltatune does not support; start with torchrun, or with "
        "accelerate's --multi_gpu or --use_fsdp --fsdp_version 2"
        for what in unsupported
    ]
    mixed_precision = os.environ.get(MIXED_PRECISION, "no").lower()
    if mixed_precision not in ("no", "bf16") or (mixed_precision == "bf16" and not bfloat16):
        problems.append(
            f"accelerate is told --mixed_precision {mixed_precision}, but Settings(precision='float32' or 'bfloat16') "
            f"decides how the base computes, {'' if bfloat16 else 'and not '}in bfloat16 here; start with "
            "--mixed_precision no"
        )
    raise_all(problems)
