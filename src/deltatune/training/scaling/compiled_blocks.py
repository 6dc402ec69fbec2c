"""torch.compile of the blocks that an adapter trains through, one by one, so that equal blocks share one graph.

Hooks are compiled through, for every adapter was attached before. Graphs take any batch size and length, so that
batches of rows of similar length do not compile anew.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn

from deltatune.core.errors import DeltatuneError
from deltatune.core.host import Host
from deltatune.core.sites.blocks import find_blocks
from deltatune.training.scaling.lower_layers import find_lower_blocks
from deltatune.training.scaling.sharding import is_sharded

Compile = Literal["off", "on", "auto"]
OnStep = Callable[[int, int, float, float], None]

WARM_STEPS = 3
"""First steps of each kind, which are not timed: they compile."""
TIMED_STEPS = 10
"""Steps of each kind that are timed, in turns."""
LEAST_SECONDS = 600.0
"""Time that the rest of a training must take for `auto` to compile: graphs take about a minute."""
LEAST_GAIN = 0.97
"""Compiled steps must take less than this part of the others' time to be kept."""


class CompiledBlocks:
    """Blocks that run compiled or not, as is found to be faster; `after_step` is told of every step."""

    def __init__(self, blocks: Sequence[nn.Module], choose: bool) -> None:
        """`choose`: time steps of both kinds first; otherwise the blocks are compiled from the second step.

        The first one also tries out what the model can do, in evaluation mode, which would be graphs of its own.
        """
        self.blocks, self.choosing = blocks, choose
        self.waiting = not choose
        self.seconds: dict[bool, list[float]] = {False: [], True: []}
        """Times of steps, by whether they were compiled."""
        self.compiled = False
        self._calls: list[Any] = []
        self._started: float | None = None

    def compile_(self) -> None:
        """Run the blocks compiled from now on."""
        if not self._calls:
            for block in self.blocks:
                block.compile(dynamic=True)
                self._calls.append(block._compiled_call_impl)
        for block, call in zip(self.blocks, self._calls, strict=True):
            block._compiled_call_impl = call
        self.compiled = True

    def release_(self) -> None:
        """Run the blocks as they are from now on."""
        for block in self.blocks:
            block._compiled_call_impl = None
        self.compiled = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within this context the blocks run as they are: scoring would compile graphs of its own."""
        compiled = self.compiled
        self.release_()
        try:
            yield
        finally:
            self._started = None  # of a step that the scoring was part of
            if compiled:
                self.compile_()

    def after_step(self, step: int, total: int) -> None:
        """Take the time since the step before, and choose what the next one runs."""
        now, started = time.perf_counter(), self._started
        self._started = now
        if self.waiting:
            self.waiting = False
            self.compile_()
        if not self.choosing or started is None:
            return
        times = self.seconds
        times[self.compiled].append(now - started)
        plain, compiled = (values[WARM_STEPS:] for values in (times[False], times[True]))
        if not times[True]:
            if len(plain) < TIMED_STEPS:
                return
            if statistics.median(plain) * (total - step) < LEAST_SECONDS:
                self.choosing = False
            else:
                times[False] = times[False][:WARM_STEPS]
                self.compile_()
        elif len(compiled) < TIMED_STEPS or len(plain) < TIMED_STEPS:
            if len(times[True]) >= WARM_STEPS and self.compiled and len(plain) < TIMED_STEPS:
                self.release_()
            else:
                self.compile_()
        else:
            self.choosing = False
            if statistics.median(compiled) >= LEAST_GAIN * statistics.median(plain):
                self.release_()
            else:
                self.compile_()

    def watching(self, on_step: OnStep | None) -> OnStep:
        """`on_step`, told of every step after this object was."""

        def told(step: int, total: int, loss: float, rate: float) -> None:
            self.after_step(step, total)
            if on_step is not None:
                on_step(step, total, loss, rate)

        return told


@contextmanager
def compiled_blocks(host: Host, how: Compile) -> Iterator[CompiledBlocks | None]:
    """Within this context the blocks above the lowest site run compiled; with `auto`, if that is faster.

    Raises DeltatuneError for `on` where nothing can be compiled; `auto` then leaves the blocks as they are.
    """
    problem = None if how == "off" else _problem(host)
    if problem is not None and how == "on":
        raise DeltatuneError(f"compile='on': {problem}; set compile='off'")
    if how == "off" or problem is not None:
        yield None
        return
    lower = find_lower_blocks(host)
    below = set() if lower is None else {id(block) for block in lower.blocks}
    blocks = [host.model.get_submodule(block.path) for block in find_blocks(host.model)]
    compiled = CompiledBlocks([block for block in blocks if id(block) not in below], choose=how == "auto")
    try:
        yield compiled
    except torch._dynamo.exc.TorchDynamoException as error:
        what = f"{type(host.model).__name__}: {str(error).strip().splitlines()[0]}"
        raise DeltatuneError(f"torch.compile failed on {what}; set compile='off'") from error
    finally:
        compiled.release_()


def _problem(host: Host) -> str | None:
    """Why nothing can be compiled here; None if it can."""
    if is_sharded(host.model):
        return "the base is sharded over several processes"
    if next(host.model.parameters()).is_cuda:
        return None if importlib.util.find_spec("triton") else "torch.compile needs the package triton for a GPU"
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    if os.name == "posix" and not any(map(shutil.which, names)):
        return f"torch.compile needs a C++ compiler; there is no {' or '.join(names)} here (install g++, or set CXX)"
    return None
