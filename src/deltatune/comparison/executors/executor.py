"""Executors: they run works in some order and return each when it is finished; and the one of this process."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

from deltatune.comparison.plan import Plan
from deltatune.comparison.works import Result, Work, Worker

OnProgress = Callable[[Literal["start", "step"], Work, dict[str, Any]], None]
"""Called when a work begins, and after each of its steps with `step`, `steps` and `loss`."""


class Finished(NamedTuple):
    """A work and what it returned."""

    work: Work
    result: Result


class Executor(Protocol):
    """Runs works of one plan. Closed at the end, also after an error: `close` ends what still runs."""

    slots: int
    """Works that run at once."""

    def submit(self, work: Work) -> None:
        """Add a work; those added first begin first."""

    def wait(self) -> Finished:
        """The next finished work; blocks until there is one. Only called while works are left."""

    def close(self) -> None:
        """End everything that runs; what has been written so far stays."""


class InProcess:
    """Runs one work after another in this process."""

    slots = 1

    def __init__(self, plan: Plan, on_progress: OnProgress) -> None:
        self.worker, self.on_progress = Worker(plan), on_progress
        self.queue: deque[Work] = deque()

    def submit(self, work: Work) -> None:
        """Add a work."""
        self.queue.append(work)

    def wait(self) -> Finished:
        """Run the next work."""
        work = self.queue.popleft()
        self.on_progress("start", work, {})

        def on_step(step: int, total: int, loss: float, rate: float) -> None:
            self.on_progress("step", work, {"step": step, "steps": total, "loss": loss})

        return Finished(work, self.worker.perform(work, on_step))

    def close(self) -> None:
        """Forget what has not begun."""
        self.queue.clear()
