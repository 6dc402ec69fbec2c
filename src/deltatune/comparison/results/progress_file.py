"""The progress of a comparison as a small file, for those who watch it from outside: `progress.json` in its folder."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltatune.core.input_validation.strict_json import dumps
from deltatune.store.atomic_files import CannotWrite, write_file

if TYPE_CHECKING:
    from deltatune.comparison.works.cells import Event, OnEvent

PROGRESS = "progress.json"
INTERVAL = 1.0
"""Fewest seconds between two writes; the first and the last event are always written."""


def with_progress(folder: Path, on_event: OnEvent | None = None) -> OnEvent:
    """What takes the events of a comparison: the progress file of its folder first, then `on_event`."""
    progress = ProgressFile(folder)

    def take(event: Event) -> None:
        progress(event)
        if on_event is not None:
            on_event(event)

    return take


class ProgressFile:
    """Takes the events of a comparison and writes where it stands, atomically, at most once a second.

    Only the process that runs the comparison calls it. A disk that is full does not end the run: the file is left as
    it was, and the records say themselves that they cannot be written.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.path, self.clock = folder / PROGRESS, clock
        self.started, self.started_at = clock(), _now()
        self.written: float | None = None
        """When the file was last written; None before."""
        self.running: dict[str, dict[str, Any]] = {}
        """Cells that are being computed: their text and the last step. Several with worker processes."""
        self.next: str | None = None
        self.sentence: str | None = None
        """What the last look at the results said, if the comparison looks before its end."""
        self.ended = False

    def __call__(self, event: Event) -> None:
        """Take an event; write if it is the first or the last one, or if the last write is a second ago."""
        self._take(event)
        due = self.written is None or self.clock() - self.written >= INTERVAL
        if not (due or event.kind in ("start", "done")):
            return
        self.written = self.clock()
        with contextlib.suppress(CannotWrite):
            write_file(self.path, dumps(self._content(event), self.path, nonfinite="null") + "\n")

    def _take(self, event: Event) -> None:
        detail = event.detail
        if event.kind == "cell_start":
            self.running[event.text] = {"text": event.text}
            self.next = detail.get("next")
        elif event.kind == "step":
            steps: dict[str, Any] = {key: detail[key] for key in ("step", "steps", "loss") if key in detail}
            self.running[event.text] = {"text": event.text, **steps}
        elif event.kind in ("cell_done", "cell_failed"):
            self.running.pop(event.text, None)
            self.next = detail.get("next")
        elif event.kind == "done":
            self.running.clear()
            self.next, self.ended = None, True
        if isinstance(detail.get("sentence"), str):
            self.sentence = detail["sentence"]

    def _content(self, event: Event) -> dict[str, Any]:
        return {
            "schema": 1,
            "state": "finished" if self.ended else "running",
            "started": self.started_at,
            "updated": _now(),
            "elapsed_seconds": round(self.clock() - self.started, 1),
            "done": event.done,
            "total": event.total,
            "seconds_left": None if self.ended else event.seconds_left,
            "now": list(self.running.values()),
            "next": self.next,
            "sentence": self.sentence,
        }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
