"""Progress of one training run: a live line in a terminal, now and then a plain line elsewhere."""

from __future__ import annotations

import time

from deltatune.cli.lively import Bar
from deltatune.comparison.formats import rate

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
