"""The executor of a comparison: this process, worker processes, or a Ray cluster."""

from __future__ import annotations

from functools import partial

from deltatune.comparison.executors.executor import InProcess
from deltatune.comparison.executors.worker_processes import WorkerProcesses, worker_count
from deltatune.comparison.plans.plan import Plan
from deltatune.comparison.works.cells import MakeExecutor
from deltatune.core.errors import DeltatuneError
from deltatune.core.sites.site import Sites
from deltatune.tasks.task import row_length

OPERATIONS = 2e11
"""Operations a second of one machine, roughly: what decides whether workers are worth their start."""
WORTH_SECONDS = 60.0
"""Estimated seconds of a comparison from which on worker processes are started: each takes some seconds to begin."""


def choose_executor(plan: Plan) -> tuple[MakeExecutor, int]:
    """What makes the executor of a plan, and how many works it runs at once.

    Without a number of workers there are as many as this machine has room for, or one where the whole comparison is
    short, or where trainings share passes. The choice depends on the plan alone, not on time, so that a comparison that
    goes on computes as it began.
    Raises DeltatuneError for an executor that does not exist.
    """
    name, workers = plan.executor, plan.workers
    if name == "local":
        several = plan.together == "off" and is_long(plan)
        count = workers if workers is not None else worker_count(plan) if several else 1
        return (InProcess, 1) if count == 1 else (partial(WorkerProcesses, workers=count), count)
    if name == "ray" or ":" in name:
        from deltatune.comparison.executors.ray_executor import make_ray_executor

        return make_ray_executor(None if name == "ray" else name, workers)
    raise DeltatuneError(
        f"--executor {name}: choose local, ray, or the address of a Ray cluster such as ray://host:10001"
    )


def is_long(plan: Plan) -> bool:
    """Whether the trainings take longer than worker processes take to start, by their operations."""
    sites: Sites = plan.session.host.sites
    lengths = [row_length(row) for row in plan.splits["train"]]
    tokens = sum(lengths) / max(1, len(lengths)) * plan.settings.batch_size * plan.steps(plan.repeats[0].draw)
    runs = sum(2 + plan.start for _ in plan.contestants)
    return 6 * sites.base_params * tokens * runs / OPERATIONS > WORTH_SECONDS
