"""Worker processes: works run at once, one thread of the processor each, with the base in shared memory."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing.connection
import multiprocessing.process
import os
import shutil
import signal
import time
from collections import deque
from collections.abc import Mapping
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext
from pathlib import Path
from typing import Any, Literal

import torch
import torch.multiprocessing
from torch import Tensor

from deltatune.comparison.executors.executor import Finished, OnProgress
from deltatune.comparison.plans.candidates import Candidate
from deltatune.comparison.plans.plan import Plan
from deltatune.comparison.works.works import Result, Work, Worker
from deltatune.core.errors import DeltatuneError
from deltatune.core.host import Host
from deltatune.core.memory import memory_of
from deltatune.models.hardware import best_device
from deltatune.training.open_session import reopened
from deltatune.training.scaling.feature_cache import CACHE, set_cache_limit
from deltatune.training.session import Session

TRIES = 3
"""Times that a work is begun whose worker dies."""
REPORT_SECONDS = 0.2
"""A worker reports a step at most this often."""
SHARED_MEMORY = Path("/dev/shm")
"""Where Linux keeps shared memory."""
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


@dataclasses.dataclass
class WorkerProcess:
    """A process of this machine, the pipe to it, and the work that it runs."""

    process: multiprocessing.process.BaseProcess
    connection: Connection
    opened: bool = False
    """Whether it has opened the plan."""
    candidates: list[Candidate] = dataclasses.field(default_factory=list)
    """Methods that it has run: what the base computes for them may be kept in its memory."""
    work: Work | None = None


class WorkerProcesses:
    """Runs works in processes of this machine.

    Each opens the plan itself and takes the base's tensors from this process's shared memory; on GPUs each has its own.
    A work whose process dies is begun again, TRIES times; the others do not notice. A process whose parent is gone ends
    with the next step that it reports.
    """

    def __init__(self, plan: Plan, on_progress: OnProgress, workers: int) -> None:
        self.plan, self.on_progress, self.slots = plan, on_progress, workers
        self.context: SpawnContext = torch.multiprocessing.get_context("spawn")
        self.portable = portable(plan)
        on_cpu = best_device().type == "cpu"
        self.tensors = shared_tensors(plan.session.host) if on_cpu else {}
        self.cache: Literal["auto"] | int = CACHE.limit_on(torch.device("cpu")) // workers if on_cpu else "auto"
        """Bytes that each process may keep of what the base computes."""
        self.threads = max(1, torch.get_num_threads() // workers)
        self.queue: deque[Work] = deque()
        self.workers: list[WorkerProcess] = []
        self.begun = 0
        """Processes that were started."""
        self.crashes: dict[str, int] = {}
        """Times that a work's process died, by the work's key."""

    def submit(self, work: Work) -> None:
        """Add a work."""
        self.queue.append(work)

    def wait(self) -> Finished:
        """The next finished work. Raises DeltatuneError where no process can open the plan."""
        while True:
            idle = sum(worker.work is None for worker in self.workers)
            for _ in range(min(self.slots - len(self.workers), len(self.queue) - idle)):
                self._start()
            for worker in self.workers:
                if worker.opened and worker.work is None and self.queue:
                    self._give(worker)
            for connection in multiprocessing.connection.wait([worker.connection for worker in self.workers]):
                worker = next(worker for worker in self.workers if worker.connection is connection)
                finished = self._receive(worker)
                if finished is not None:
                    return finished

    def close(self) -> None:
        """End the workers; what they have written so far stays."""
        for worker in self.workers:
            worker.process.terminate()
            worker.connection.close()
        for worker in self.workers:
            worker.process.join(5)
            if worker.process.is_alive():
                worker.process.kill()
        self.workers.clear()
        self.queue.clear()

    def _start(self) -> None:
        ours, theirs = self.context.Pipe()
        begin = (self.portable, self.tensors, self.threads, self.cache, self.begun, theirs)
        process = self.context.Process(target=serve, args=begin, daemon=True)
        process.start()
        theirs.close()  # so that the end of the process is the end of the pipe
        self.begun += 1
        self.workers.append(WorkerProcess(process, ours))

    def _give(self, worker: WorkerProcess) -> None:
        """Give a worker the first work of a method that it has run before, or the first of all."""
        known = (i for i, work in enumerate(self.queue) if work.cell.candidate in worker.candidates)
        self.queue.rotate(-(place := next(known, 0)))
        worker.work = self.queue.popleft()
        self.queue.rotate(place)
        if worker.work.cell.candidate not in worker.candidates:
            worker.candidates.append(worker.work.cell.candidate)
        with contextlib.suppress(OSError):  # it died while it had nothing to do: the pipe says so when it is read
            worker.connection.send(worker.work)

    def _receive(self, worker: WorkerProcess) -> Finished | None:
        """What a worker says: a work that is finished, or None. Raises what kept it from opening the plan."""
        try:
            kind, content = worker.connection.recv()
        except (EOFError, OSError):
            return self._lost(worker)
        if kind == "error":
            raise content
        if kind == "opened":
            worker.opened = True
            return None
        assert worker.work is not None
        if kind == "finished":
            work, worker.work = worker.work, None
            return Finished(work, content)
        self.on_progress(kind, worker.work, content)
        return None

    def _lost(self, worker: WorkerProcess) -> Finished | None:
        """Begin the work of a dead process again; its failure, if it was begun too often."""
        self.workers.remove(worker)
        worker.connection.close()
        worker.process.join()
        work = worker.work
        if work is None:
            if worker.opened:
                return None
            raise DeltatuneError(
                f"a worker process ended before it began ({_how(worker.process.exitcode)}). It may need more memory "
                "than there is: use fewer workers, or workers=1, which starts no process. A script that compares must "
                'do so under `if __name__ == "__main__":`'
            )
        crashes = self.crashes[work.key] = self.crashes.get(work.key, 0) + 1
        if crashes >= TRIES:
            text = f"its worker process died {crashes} times ({_how(worker.process.exitcode)}); it may need more memory"
            failed = {"status": "failed", "error": f"{text} than there is", "work_seconds": 0.0}
            return Finished(work, Result(failed))
        self.queue.appendleft(work)
        return None


def _how(code: int | None) -> str:
    """An exit code for people."""
    return f"killed by signal {-code}" if code is not None and code < 0 else f"exit code {code}"


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
    """The base's parameters and buffers, moved to shared memory; none where it has no room, as in many containers."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in host.model.state_dict().values())
    if SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free < 1.2 * size:
        return {}
    tensors = {name: tensor.data for name, tensor in [*host.model.named_parameters(), *host.model.named_buffers()]}
    return {name: tensor.share_memory_() for name, tensor in tensors.items() if not name.startswith("deltatune.")}  # type: ignore[no-untyped-call]


def serve(
    plan: Plan,
    tensors: Mapping[str, Tensor],
    threads: int,
    cache: Literal["auto"] | int,
    number: int,
    connection: Connection,
) -> None:
    """Open the plan in a new process, and run the works that come through the pipe until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends the workers
    torch.set_num_threads(threads)
    set_cache_limit(cache)
    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())
    try:
        worker = Worker(opened_plan(plan, tensors))
    except DeltatuneError as error:  # the model is gone
        connection.send(("error", error))
        return
    with contextlib.suppress(EOFError, OSError):  # the main process is gone
        connection.send(("opened", None))
        while True:
            connection.send(_performed(worker, connection.recv(), connection))


def _performed(worker: Worker, work: Work, connection: Connection) -> tuple[str, Any]:
    """The message that a work is finished, or why no work can be."""
    connection.send(("start", {}))
    reported = time.monotonic()

    def on_step(step: int, total: int, loss: float, rate: float) -> None:
        nonlocal reported
        if time.monotonic() - reported > REPORT_SECONDS:
            reported = time.monotonic()
            connection.send(("step", {"step": step, "steps": total, "loss": loss}))

    try:
        return "finished", worker.perform(work, on_step)
    except DeltatuneError as error:  # files cannot be written
        return "error", error
