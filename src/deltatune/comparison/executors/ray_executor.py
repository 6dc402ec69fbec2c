"""Works on a Ray cluster: each is a task of one core or one GPU; files travel with the works and come back with them.

What a work has written on its node (`ray_node`) is put into the folder of the comparison here.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections import deque
from typing import Any

from deltatune.comparison.executors.executor import Finished, OnProgress
from deltatune.comparison.executors.ray_cluster import RayCluster
from deltatune.comparison.executors.ray_node import Mailbox, NodeResult, Opening, input_folders, read_files, run_work
from deltatune.comparison.executors.worker_processes import TRIES, portable
from deltatune.comparison.plans.plan import Plan
from deltatune.comparison.works.cells import MakeExecutor
from deltatune.comparison.works.works import Result, Work
from deltatune.core.errors import DeltatuneError, first_line
from deltatune.models.versions import versions
from deltatune.store.atomic_files import put_folder

POLL = 0.2
"""Seconds between two looks at what the nodes say."""
COUNT_SECONDS = 5.0
"""Seconds between two looks at how large the cluster is."""
CRASHES = ("WorkerCrashedError", "OutOfMemoryError")
"""Errors of Ray for a work whose process died: perhaps through the work itself."""
LOSSES = ("NodeDiedError", "LocalRayletDiedError", "ObjectLostError", "OwnerDiedError", "ObjectFetchTimedOutError")
"""Errors of Ray for a work whose node is gone."""


def make_ray_executor(address: str | None, workers: int | None) -> tuple[MakeExecutor, int]:
    """Connect to a cluster; what makes its executor, and how many works run at once, at most `workers`.

    Raises DeltatuneError as RayCluster does.
    """
    cluster = RayCluster(address)

    def make(plan: Plan, on_progress: OnProgress) -> RayTasks:
        return RayTasks(plan, on_progress, cluster, workers)

    return make, min(cluster.slots, workers or cluster.slots)


class RayTasks:
    """Runs works as tasks of a Ray cluster.

    The work of a worker process that dies is begun again, TRIES times; that of a node that is gone, as often as nodes
    go. Raises DeltatuneError for a node that cannot open the model or has other versions.
    """

    def __init__(self, plan: Plan, on_progress: OnProgress, cluster: RayCluster, workers: int | None = None) -> None:
        self.plan, self.on_progress, self.cluster, self.workers = plan, on_progress, cluster, workers
        self.ray = cluster.ray
        devices = {"num_gpus": 1} if cluster.has_gpus else {"num_cpus": 1}
        self.task = self.ray.remote(max_retries=0, **devices)(run_work)  # lost works are begun again here, and counted
        self.mailbox = self.ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=0)(Mailbox).remote()
        self.opening = Opening(
            f"{os.getpid()}.{time.time_ns()}",
            self.ray.put(portable(plan)),
            plan.session.base_record(),
            versions(),
            os.getcwd(),
        )
        self.queue: deque[Work] = deque()
        self.tasks: dict[Any, Work] = {}
        """Tasks given to the cluster, by the references to their outcomes."""
        self.known: dict[str, Work] = {}
        self.crashes: dict[str, int] = {}
        """Times that a work's process died, by the work's key."""
        self.slots = 1
        self._counted = -math.inf
        self._count()

    def submit(self, work: Work) -> None:
        """Add a work."""
        self.known[work.key] = work
        self.queue.append(work)

    def wait(self) -> Finished:
        """The next finished work. Raises DeltatuneError if the cluster is gone."""
        while True:
            try:
                self._count()
                self._fill()
                done, _ = self.ray.wait(list(self.tasks), num_returns=1, timeout=POLL)
                self._report()
                finished = self._finished(done[0]) if done else None
            except (ConnectionError, self.ray.exceptions.RaySystemError, self.ray.exceptions.RpcError) as error:
                raise DeltatuneError(
                    f"the Ray cluster is gone ({first_line(error)}). Finished cells are kept in {self.plan.out}: with "
                    "a running cluster the same command resumes"
                ) from error
            if finished is not None:
                return finished

    def close(self) -> None:
        """End what runs; the cluster is left as it was found."""
        with contextlib.suppress(Exception):  # it may be gone
            for task in self.tasks:
                self.ray.cancel(task, force=True)
            self.ray.kill(self.mailbox)
        self.tasks.clear()
        self.queue.clear()
        self.cluster.disconnect()

    # ---- inside

    def _count(self) -> None:
        """Nodes come and go."""
        if time.monotonic() - self._counted > COUNT_SECONDS:
            slots = self.cluster.slots
            self.slots, self._counted = min(slots, self.workers or slots), time.monotonic()

    def _fill(self) -> None:
        """Give the cluster works: some more than run at once, so that one that can grow sees what is waiting."""
        most = self.workers or 2 * self.slots
        while self.queue and len(self.tasks) < most:
            work = self.queue.popleft()
            files = read_files(self.plan.out, input_folders(work))
            self.tasks[self.task.remote(self.opening, work, files, self.mailbox)] = work

    def _finished(self, task: Any) -> Finished | None:
        """The result of a task that ended, its files put into the folder here; None for one that was begun again."""
        work = self.tasks.pop(task)
        try:
            outcome: NodeResult = self.ray.get(task)
        except self.ray.exceptions.RayError as error:
            return self._failed(work, error)
        if outcome.result is None:
            raise DeltatuneError(outcome.problem)
        if outcome.files:
            put_folder(self.plan.out / work.folder, outcome.files)
        return Finished(work, outcome.result)

    def _failed(self, work: Work, error: Exception) -> Finished | None:
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if kinds & {*CRASHES}:
            crashes = self.crashes[work.key] = self.crashes.get(work.key, 0) + 1
            if crashes >= TRIES:
                text = f"its worker process died {crashes} times; it may need more memory than there is"
                return Finished(work, Result({"status": "failed", "error": text, "work_seconds": 0.0}))
        elif not kinds & {*LOSSES}:
            raise DeltatuneError(f"the Ray cluster cannot run the works of this comparison: {_cause(error)}") from error
        self.queue.appendleft(work)
        return None

    def _report(self) -> None:
        """Pass on what the works say of their progress; without a mailbox, whose node may be gone, they say nothing."""
        with contextlib.suppress(self.ray.exceptions.RayError):
            for kind, key, detail in self.ray.get(self.mailbox.take.remote(), timeout=1):
                self.on_progress(kind, self.known[key], detail)


def _cause(error: BaseException) -> str:
    """The last line of what a task raised: its own error, where Ray puts the traceback of the node before it."""
    text = str(error).strip() or type(error).__name__
    lacking = "No module named 'deltatune" in text
    return text.splitlines()[-1] + ('; install it on every node: pip install "deltatune[ray]"' if lacking else "")
