"""Live progress in a terminal; elsewhere, plain lines now and then."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from deltatune.cli.ui.screen import console
from deltatune.comparison.report.number_format import rate

SMOOTHING = 0.8
"""Weight of the previous value in the displayed loss, because the loss of single batches varies."""
PLAIN_LINES = 10
"""Number of lines per run if the output is not a terminal."""


class LiveDisplay:
    """A context manager that starts and stops a live display on stderr."""

    def __init__(self) -> None:
        self.console = console(stderr=True)
        self.live: Live | Progress | None = None

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()


class Bar(LiveDisplay):
    """One progress bar with a name before it, a count and a text behind it."""

    def __init__(self, name: str) -> None:
        super().__init__()
        if self.console.is_terminal:
            columns = TextColumn(name), BarColumn(24), MofNCompleteColumn(), TextColumn("{task.fields[text]}")
            self.live = Progress(*columns, console=self.console, transient=True)
            self.task = self.live.add_task(name, total=None, text="")

    def update(self, done: int, total: int, text: str) -> bool:
        """Update the bar; return False if there is no terminal to show it in."""
        if not isinstance(self.live, Progress):
            return False
        self.live.update(self.task, completed=done, total=total, text=text)
        return True


class TrainingProgress(Bar):
    """Shows each training step; pass it as `on_step`. A context manager, so that the live display ends with it."""

    def __init__(self, rows: int, batch_size: int) -> None:
        """`rows` of one epoch; its last batch may be smaller."""
        super().__init__("training")
        self.batch_size = batch_size
        self.mean_batch = rows / max(1, -(-rows // batch_size))
        self.started, self.first, self.last = time.perf_counter(), 0, 0
        self.loss = 0.0

    def __call__(self, step: int, total: int, loss: float, learning_rate: float) -> None:
        """Show a step."""
        if not self.first or step <= self.last:  # another run, of a learning rate that is tried
            self.started, self.first, self.loss = time.perf_counter(), step, loss
        self.last = step
        self.loss = SMOOTHING * self.loss + (1 - SMOOTHING) * loss
        text = self._text(step, total, learning_rate)
        if self.update(step, total, text):
            return
        if step == total or step * PLAIN_LINES // total > (step - 1) * PLAIN_LINES // total:
            self.console.print(f"step {step}/{total}  {text}")

    def _text(self, step: int, total: int, learning_rate: float) -> str:
        elapsed, done = time.perf_counter() - self.started, step - self.first  # steps since the first was seen
        parts = [f"loss {self.loss:.3f}", f"lr {rate(learning_rate)}"]
        if done:
            parts.append(f"{done * self.mean_batch / elapsed:.0f} rows/s")
        if step == total:
            parts.append("scoring")
        elif done:
            parts.append(f"{time_left((total - step) * elapsed / done)} left")
        return "  ".join(parts)


class StepsProgress(Bar):
    """Shows the steps of several trainings that run at once as one count; pass it as `on_step`."""

    def __init__(self) -> None:
        super().__init__("training")
        self.started, self.first = time.perf_counter(), 0

    def __call__(self, done: int, total: int, loss: float, learning_rate: float) -> None:
        """Show how many steps are done; a loss of one training among others says nothing."""
        if not self.first:
            self.started, self.first = time.perf_counter(), done
        elapsed, seen = time.perf_counter() - self.started, done - self.first
        text = "scoring" if done == total else ""
        if seen and done < total:
            text = f"{time_left((total - done) * elapsed / seen)} left"
        if not self.update(done, total, text) and done * PLAIN_LINES // total > (done - 1) * PLAIN_LINES // total:
            self.console.print(f"step {done}/{total} of all adapters  {text}")


def time_left(seconds: float) -> str:
    """Format an estimate: 9.4 -> "9 s", 80 -> "1:20 min", 5000 -> "1:23 h"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60}:{whole % 60:02} min" if whole < 3600 else f"{whole // 3600}:{whole % 3600 // 60:02} h"
