"""Measured speed of shared passes: whether several adapters train faster together than one after another, here."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter

import torch
from transformers import PreTrainedTokenizerBase

from deltatune.core.host import Host
from deltatune.training.joint_training.train_together import JointTraining, opened, trains_alone
from deltatune.training.reporting import Reporter
from deltatune.training.scaling.distributed import Processes
from deltatune.training.scaling.gradient_checkpointing import gradient_checkpointing
from deltatune.training.train_adapter import AdapterTraining, TrainingRun
from deltatune.training.training_loop.loop import Step

LEAST_GAIN = 1.05
"""Together counts as faster from this ratio on: less is within what a measurement of some steps can tell."""
TURNS = 3


def is_faster(
    host: Host,
    trainings: Sequence[AdapterTraining],
    tokenizer: PreTrainedTokenizerBase,
    steps: int = 2,
    most_rows: int | None = None,
) -> bool:
    """Whether `train_together` is faster than one `train` after another, by `speedup`: at least by one in twenty."""
    return speedup(host, trainings, tokenizer, steps, most_rows) >= LEAST_GAIN


def speedup(
    host: Host,
    trainings: Sequence[AdapterTraining],
    tokenizer: PreTrainedTokenizerBase,
    steps: int = 2,
    most_rows: int | None = None,
) -> float:
    """Seconds of the first `steps` steps one training after another, over their seconds together, measured in turns.

    Forward and backward passes on the real base and batches, without an update: the adapters and the random generators
    stay as they are, gradients are cleared. 1.0 where fewer than two of them share passes. Raises as `train_together`.
    """
    plain = [dataclasses.replace(each, out=None, reports=None, on_step=None, until=None) for each in trainings]
    runs = [run for run in opened(host, plain, tokenizer) if not trains_alone(run)]
    if len(runs) < 2:
        return 1.0
    checkpointed = any(run.settings.checkpointing for run in runs)
    with (
        torch.random.fork_rng(),
        host.using(None, training=True),
        gradient_checkpointing(host.model, checkpointed),
    ):
        due = _first_steps(host, runs, steps)
        joint = JointTraining(host, dict(enumerate(runs)), tokenizer, most_rows)

        def together() -> None:
            host.model.train()
            for each in due:
                joint.backward(each)

        def apart() -> None:
            for i, run in enumerate(runs):
                with host.using(run.name):
                    for each in due:
                        if i in each:
                            run.loop.backward(each[i])

        return _ratio(apart, together, lambda: [run.loop.optimizer.zero_grad() for run in runs])


def _first_steps(host: Host, runs: Sequence[TrainingRun], steps: int) -> list[Mapping[int, Step]]:
    """The first steps of each training, side by side."""
    each = []
    for run in runs:
        with host.using(run.name, training=True):
            settings = dataclasses.replace(run.settings, report_to=())
            run.open_(Reporter(None, settings, run.device, host.model), Processes(device=run.device))
        each.append([step for step, _ in zip(run.loop.steps(), range(steps), strict=False)])
    return [{i: of[n] for i, of in enumerate(each) if n < len(of)} for n in range(steps)]


def _ratio(first: Callable[[], None], second: Callable[[], None], after: Callable[[], object]) -> float:
    """Median of the ratios of their seconds, in turns, after one of each that is not counted."""
    ratios = []
    for turn in range(TURNS + 1):
        seconds = []
        for work in (first, second):
            started = perf_counter()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds.append(perf_counter() - started)
            after()
        if turn:
            ratios.append(seconds[0] / seconds[1])
    return statistics.median(ratios)
