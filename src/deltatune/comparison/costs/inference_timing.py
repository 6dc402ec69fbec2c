"""Timing of forward passes of one host: adapters unmerged or merged, in turns against a drift of the machine."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deltatune.core.host import Host
from deltatune.training.forward import read_first


@dataclass(frozen=True)
class TimedRun:
    """What is timed, and what is done before it without being timed."""

    prepare: Callable[[], None]
    run: Callable[[], object]


def times_in_turns(runs: Sequence[TimedRun], repeats: int) -> list[list[float]]:
    """Seconds of each run in every turn, as many lists as runs; one turn before them warms up.

    Each turn has every run once, in an order drawn anew: a slow moment hits all of them alike, and none always follows
    the same one. So what is compared are the runs of one turn.
    """
    seconds: list[list[float]] = [[] for _ in runs]
    order = list(range(len(runs)))
    for turn in range(repeats + 1):
        random.Random(turn).shuffle(order)
        for number in order:
            runs[number].prepare()
            _wait()
            start = time.perf_counter()
            runs[number].run()
            _wait()
            if turn:
                seconds[number].append(time.perf_counter() - start)
    return seconds


def forward_pass(host: Host, batch: dict[str, Tensor], bfloat16: bool) -> Callable[[], object]:
    """A function that runs the model on a batch without gradients; a decoder reads the encoder's input."""
    extra = {"decoder_input_ids": batch["input_ids"]} if host.sites.facts.encoder_decoder else {}

    @torch.no_grad()
    def run() -> object:
        with torch.autocast(read_first(batch).device.type, torch.bfloat16, enabled=bfloat16):
            return host.model(**batch, **extra)

    return run


def act(host: Host, name: str | None, merged: bool = False) -> None:
    """Let one adapter act, unmerged or merged, and no other one; None for the bare base."""
    for other in [other for other in host.merged if other != name or not merged]:
        host.unmerge_(other)
    if merged and name is not None and name not in host.merged:
        host.merge_(name)
    host.use(name)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
