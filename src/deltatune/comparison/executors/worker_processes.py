"""Worker processes: works run at once, one thread of the processor each, with the base in shared memory."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import queue
import signal
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import SpawnContext
from typing import Any

import torch
import torch.multiprocessing
from torch import Tensor

from deltatune.comparison.executors.executor import Finished, OnProgress
from deltatune.comparison.plan import Plan
from deltatune.comparison.works import Result, Work, Worker
from deltatune.core.host import Host
from deltatune.core.memory import memory_of
from deltatune.models.hardware import best_device
from deltatune.training.session import Session, reopened

TRIES = 3
"""Times that a work is begun whose worker dies."""
POLL = 0.2
"""Seconds between two looks at the messages of the workers."""
OWN_BYTES = 1.5e9
"""What a worker needs beside the base: the libraries, activations, an adapter and its optimizer."""


def worker_count(plan: Plan) -> int:
    """Workers that this machine has room for: one a core, or one a GPU, as far as the memory reaches."""
    if best_device().type != "cpu":
        return max(1, torch.cuda.device_count())
    base = sum(tensor.numel() * tensor.element_size() for tensor in plan.session.host.model.parameters())
    needed = OWN_BYTES + 4 * base  # full fine-tuning: values, gradients, two moments
    return max(1, min(cores(), int(0.8 * memory_of(torch.device("cpu")) / needed)))


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class WorkerProcesses:
    """Runs works in processes of this machine.

    Each opens the plan itself and takes the base's tensors from this process's shared memory; on GPUs each has its own.
    If a worker dies, its work and those that ran beside it are begun again, TRIES times.
    """

    def __init__(self, plan: Plan, on_progress: OnProgress, workers: int) -> None:
        self.plan, self.on_progress, self.slots = plan, on_progress, workers
        self.context: SpawnContext = torch.multiprocessing.get_context("spawn")  # type: ignore[no-untyped-call]
        self.messages: Any = self.context.Queue()
        self.futures: dict[Future[Result], Work] = {}
        self.tries: dict[str, int] = {}
        self.known: dict[str, Work] = {}
        self.pool: ProcessPoolExecutor | None = None

    def submit(self, work: Work) -> None:
        """Add a work."""
        self.known[work.key] = work
        if self.pool is None:
            self.pool = self._new_pool()
        try:
            self.futures[self.pool.submit(_perform, work)] = work
        except BrokenProcessPool:
            self._restart()
            self.submit(work)

    def wait(self) -> Finished:
        """The next finished work."""
        while True:
            done, _ = wait(self.futures, timeout=POLL, return_when=FIRST_COMPLETED)
            self._report()
            for future in done:
                work = self.futures.pop(future)
                try:
                    return Finished(work, future.result())
                except BrokenProcessPool:
                    lost = self._lost(work)
                    if lost is not None:
                        return lost

    def close(self) -> None:
        """End the workers; what they have written so far stays."""
        if self.pool is not None:
            _end(self.pool)
            self.pool = None
        self.futures.clear()
        self.messages.close()

    def _lost(self, work: Work) -> Finished | None:
        """Begin all works again after a worker died; the failure of a work that was begun too often."""
        again = [work, *self.futures.values()]
        self.futures.clear()
        self._restart()
        failed = None
        for each in again:
            begun = self.tries.get(each.key, 0)
            if begun >= TRIES and failed is None:
                error = f"its worker process died {begun} times; it may need more memory than there is"
                failed = Finished(each, Result({"status": "failed", "error": error, "work_seconds": 0.0}))
            else:
                self.submit(each)
        return failed

    def _restart(self) -> None:
        if self.pool is not None:
            _end(self.pool)
        self.pool = None

    def _report(self) -> None:
        """Pass on what the workers said."""
        with contextlib.suppress(queue.Empty):
            while True:
                kind, key, detail = self.messages.get_nowait()
                if kind == "start":
                    self.tries[key] = self.tries.get(key, 0) + 1
                self.on_progress(kind, self.known[key], detail)

    def _new_pool(self) -> ProcessPoolExecutor:
        plan, host = self.plan, self.plan.session.host
        on_cpu = best_device().type == "cpu"
        tensors = shared_tensors(host) if on_cpu else {}
        threads = max(1, torch.get_num_threads() // self.slots)
        return ProcessPoolExecutor(
            self.slots,
            self.context,
            _begin,
            (portable(plan), tensors, threads, self.messages, self.context.Value("i", 0)),
        )


def portable(plan: Plan) -> Plan:
    """A plan without its model, which can be sent to another process; `opened_plan` is the way back."""
    session = dataclasses.replace(plan.session, host=None)  # type: ignore[arg-type]
    return dataclasses.replace(plan, session=session)


def opened_plan(plan: Plan, tensors: Mapping[str, Tensor] | None = None) -> Plan:
    """A plan from another process with its model; parameters and buffers named in `tensors` share their memory."""
    session: Session = reopened(plan.session)
    model = session.host.model
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensors and name in tensors:
            tensor.data = tensors[name]
    return dataclasses.replace(plan, session=session)


def shared_tensors(host: Host) -> dict[str, Tensor]:
    """The base's parameters and buffers, moved to shared memory."""
    tensors = {name: tensor.data for name, tensor in [*host.model.named_parameters(), *host.model.named_buffers()]}
    return {name: tensor.share_memory_() for name, tensor in tensors.items() if not name.startswith("deltatune.")}


_worker: Worker | None = None
_messages: Any = None


def _begin(plan: Plan, tensors: Mapping[str, Tensor], threads: int, messages: Any, started: Any) -> None:
    """Open the plan in a new worker."""
    global _worker, _messages
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends the workers
    with started.get_lock():
        number, started.value = started.value, started.value + 1
    torch.set_num_threads(threads)
    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())
    _worker, _messages = Worker(opened_plan(plan, tensors)), messages


def _perform(work: Work) -> Result:
    """Run a work in this worker."""
    assert _worker is not None
    _messages.put(("start", work.key, {}))

    def on_step(step: int, total: int, loss: float, rate: float) -> None:
        _messages.put(("step", work.key, {"step": step, "steps": total, "loss": loss}))

    return _worker.perform(work, on_step)


def _end(pool: ProcessPoolExecutor) -> None:
    """End a pool's processes, whatever they do."""
    processes: list[multiprocessing.Process] = list((getattr(pool, "_processes", None) or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        with contextlib.suppress(OSError, ValueError):
            process.terminate()
    for process in processes:
        process.join(5)
