"""What moves in a terminal for as long as something runs; elsewhere nothing does."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from deltatune.cli.ui.screen import console
from deltatune.comparison.report.number_format import rate


class Lively:
    """A context: what is live starts with it and ends with it."""

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


class Bar(Lively):
    """One bar with a name before it, a count and words behind it."""

    def __init__(self, name: str) -> None:
        super().__init__()
        if self.console.is_terminal:
            columns = TextColumn(name), BarColumn(24), MofNCompleteColumn(), TextColumn("{task.fields[words]}")
            self.live = Progress(*columns, console=self.console, transient=True)
            self.only = self.live.add_task(name, total=None, words="")

    def moved(self, done: int, total: int, words: str) -> bool:
        """Show how far it is; False where there is no terminal to show it in."""
        if not isinstance(self.live, Progress):
            return False
        self.live.update(self.only, completed=done, total=total, words=words)
        return True


SMOOTHING = 0.8
"""Share of the old value in the shown loss: single batches jump."""
PLAIN_LINES = 10
"""Lines a run prints where the output is no terminal."""


class TrainingProgress(Bar):
    """Called after each step (as training's `on_step`); a context, so that the live line ends with it."""

    def __init__(self, rows: int, batch_size: int) -> None:
        """`rows` of one epoch; the last batch of it may be smaller."""
        super().__init__("training")
        self.batch_size = batch_size
        self.mean_batch = rows / max(1, -(-rows // batch_size))
        self.started, self.first = time.perf_counter(), 0
        self.loss = 0.0

    def __call__(self, step: int, total: int, loss: float, learning_rate: float) -> None:
        """Show a step."""
        if not self.first:
            self.first, self.loss = step, loss
        self.loss = SMOOTHING * self.loss + (1 - SMOOTHING) * loss
        words = self._words(step, total, learning_rate)
        if self.moved(step, total, words):
            return
        if step == total or step * PLAIN_LINES // total > (step - 1) * PLAIN_LINES // total:
            self.console.print(f"step {step}/{total}  {words}")

    def _words(self, step: int, total: int, learning_rate: float) -> str:
        elapsed, done = time.perf_counter() - self.started, step - self.first + 1
        speed = done * self.mean_batch / elapsed
        left = f"{time_left((total - step) * elapsed / done)} left" if step < total else "scoring"
        return f"loss {self.loss:.3f}  rate {rate(learning_rate)}  {speed:.0f} rows/s  {left}"


def time_left(seconds: float) -> str:
    """9.4 -> "9 s", 80 -> "1:20 min", 5000 -> "1:23 h": as exact as an estimate is."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60}:{whole % 60:02} min" if whole < 3600 else f"{whole // 3600}:{whole % 3600 // 60:02} h"
