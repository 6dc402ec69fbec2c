"""Executors: they run works in some order and return each when it is finished; and the one of this process."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, Protocol

from deltatune.comparison.plans.plan import Plan
from deltatune.comparison.works.joint_works import JointWorker, take_together
from deltatune.comparison.works.works import OnStep, Result, Work

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
        self.plan, self.worker, self.on_progress = plan, JointWorker(plan), on_progress
        self.queue: deque[Work] = deque()
        self.begun: Iterator[Finished] = iter(())
        """What is left of the works taken last."""

    def submit(self, work: Work) -> None:
        """Add a work."""
        self.queue.append(work)

    def wait(self) -> Finished:
        """Run the next work, or the next ones in one pass."""
        finished = next(self.begun, None)
        if finished is not None:
            return finished
        works = take_together(self.plan, self.queue)
        self.begun = map(Finished, works, self.worker.perform_all(works, self._watch))
        return next(self.begun)

    def _watch(self, work: Work) -> OnStep:
        self.on_progress("start", work, {})

        def on_step(step: int, total: int, loss: float, rate: float) -> None:
            self.on_progress("step", work, {"step": step, "steps": total, "loss": loss})

        return on_step

    def close(self) -> None:
        """Forget what has not begun."""
        self.queue.clear()
        self.begun = iter(())
