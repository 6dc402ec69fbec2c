"""Optimizer steps and the memory of their states: the four of deltatune, torch's AdamW and bitsandbytes' AdamW8bit."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from benchmarks.measure import interleaved_times, options, report
from deltatune.training.optimizers.make_optimizer import make_optimizer
from deltatune.training.optimizers.state_bytes import OPTIMIZERS, file_bytes, state_bytes


def main() -> None:
    arguments = options("optimizers", millions=16, tensors=8)
    numel = arguments.millions * 10**6 // arguments.tensors
    with tempfile.TemporaryDirectory() as folder:
        steps = {name: step_of(name, Path(folder), arguments.tensors, numel) for name in OPTIMIZERS}
        steps["torch"] = taken(torch.optim.AdamW(parameters(arguments.tensors, numel), lr=1e-3, fused=True))
        try:
            import bitsandbytes
        except ImportError:
            print("bitsandbytes is not installed: left out")
        else:
            theirs = bitsandbytes.optim.AdamW8bit(parameters(arguments.tensors, numel), lr=1e-3)
            steps["bitsandbytes 8bit"] = taken(theirs)
        times = interleaved_times(steps, arguments, warmup=2)
    report(f"optimizers: {arguments.millions} M parameters", times, "torch", {}, arguments)
    numels = [numel] * arguments.tensors
    print(f"\n{'MB of states':28}{'in memory':>12}{'in a file':>16}")
    for name in OPTIMIZERS:
        print(f"{name:28}{state_bytes(name, numels) / 1e6:12.1f}{file_bytes(name, numels) / 1e6:16.1f}")
    if "bitsandbytes 8bit" in steps:
        print(f"8 bits, ours / bitsandbytes': {times.ratio('adamw-8bit', 'bitsandbytes 8bit'):.2f}")


def parameters(count: int, numel: int) -> list[nn.Parameter]:
    """The same values and gradients each time."""
    torch.manual_seed(0)
    made = [nn.Parameter(torch.randn(numel)) for _ in range(count)]
    for parameter in made:
        parameter.grad = torch.randn(numel)
    return made


def step_of(name: str, folder: Path, count: int, numel: int) -> Callable[[], object]:
    groups = [{"params": parameters(count, numel), "lr": 1e-3, "weight_decay": 0.0}]
    return taken(make_optimizer(name, groups, 1e-3, out=folder))  # type: ignore[arg-type]


def taken(optimizer: torch.optim.Optimizer) -> Callable[[], object]:
    return optimizer.step


if __name__ == "__main__":
    main()
