"""What a running comparison shows: a live picture in a terminal, a line a finished run elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from deltatune.cli.ui.live import Lively, time_left
from deltatune.cli.ui.screen import table
from deltatune.comparison.report.number_format import rate, score, seconds
from deltatune.tasks.metrics.metric_facts import LOWER_IS_BETTER

if TYPE_CHECKING:
    from deltatune.comparison.cells import Event
    from deltatune.comparison.report.method_results import MethodResult

Record = Mapping[str, Any]
WIDE = 110
"""Columns from which on the closing table has whole method texts and whole numbers."""


class Watching(Lively):
    """Called with each event of a comparison; a context, so that the live picture ends with it."""

    def __init__(self, metric: str) -> None:
        super().__init__()
        self.metric = metric
        if self.console.is_terminal:
            self.live = Live(console=self.console, transient=True, refresh_per_second=4)
        self.done, self.total = 0, 0
        self.left: float | None = None
        self.now: str | None = None
        self.next: str | None = None
        self.detail: dict[str, Any] = {}
        self.best: Record | None = None

    def __call__(self, event: Event) -> None:
        """Take in what happened and show it."""
        self.done, self.total, self.left = event.done, event.total, event.seconds_left
        if event.kind == "cell_start":
            self.now, self.next, self.detail = event.text, event.detail.get("next"), {}
        elif event.kind == "step":
            self.now, self.detail = event.text, event.detail
        elif event.kind in ("cell_done", "cell_failed"):
            self._ended(event)
        if isinstance(self.live, Live):
            self.live.update(self.picture())

    def _ended(self, event: Event) -> None:
        """A run is over, in this session or (then it was never started here) in an earlier one."""
        record: Record = event.detail.get("record") or {}
        before = "" if self.now == event.text else ", from an earlier session"
        self.now = None
        if event.kind == "cell_failed":
            problem = str(record.get("error") or "").partition("\n")[0]
            self.console.print(f"failed: {event.text}: {problem}")
            return
        if self._better(record):
            self.best = record
        if self.live is None:
            took = before or f" in {seconds(record.get('train_seconds'))}"
            left = f", {time_left(event.seconds_left)} left" if event.seconds_left else ""
            self.console.print(
                f"{event.done}/{event.total}  {event.text}: {score(self._validation(record))}{took}{left}",
                soft_wrap=True,
            )

    def _validation(self, record: Record | None) -> float | None:
        scores = ((record or {}).get("scores") or {}).get("validation") or {}
        return scores.get(self.metric)

    def _better(self, record: Record) -> bool:
        new, old = self._validation(record), self._validation(self.best)
        return new is not None and (old is None or (new < old if self.metric in LOWER_IS_BETTER else new > old))

    def picture(self) -> Group:
        """Bar, what runs, what is next, the best so far."""
        bar = Table.grid(padding=(0, 2, 0, 0))
        left = f"{time_left(self.left)} left" if self.left is not None else ""
        bar.add_row(ProgressBar(self.total or None, self.done, width=30), f"{self.done} of {self.total} runs", left)
        lines = Table.grid(padding=(0, 2, 0, 0))
        lines.add_column(no_wrap=True, style="dim")
        lines.add_column(no_wrap=True, overflow="ellipsis")
        lines.add_row("now", self.now or "–")
        lines.add_row("", self._step())
        lines.add_row("next", self.next or "–")
        lines.add_row("best", self._best())
        return Group(bar, lines)

    def _step(self) -> str:
        if self.now is None or "steps" not in self.detail:
            return ""
        return f"step {self.detail['step']}/{self.detail['steps']}   loss {self.detail['loss']:.3f}"

    def _best(self) -> str:
        if self.best is None:
            return "–"
        where = f"{self.best['method']}, rate {rate(self.best['learning_rate'])}"
        return f"{score(self._validation(self.best))} validation {self.metric}: {where}"


def results(summary: Mapping[str, Any], width: int) -> Table:
    """The closing table, the best method first; where the screen is narrow, methods go by short names."""
    from deltatune.comparison.report.method_results import method_results

    sign = -1 if summary["metric"] in LOWER_IS_BETTER else 1
    found = sorted(method_results(summary), key=lambda e: (e.score is None, -sign * (e.score or 0.0)))
    best = found[0].score if found else None
    rows = []
    for result in found:
        name = result.row["method"] if width >= WIDE else result.label
        ends = result.interval
        verdict = "best" if result.score == best else "tied" if result.row.get("tied_with_best") else ""
        cells = [
            f"{name}*" if result.reference else name,
            score(result.score) if result.score is not None else "failed",
            f"±{(ends[1] - ends[0]) / 2:.3f}" if ends else "",
            verdict if result.score is not None else "",
            *_costs(result, width >= WIDE),
        ]
        rows.append([Text(cell, style="bold" if verdict else "") for cell in cells])
    numbers = [summary["metric"], "95 %", "trained", "share", "time", "live", "merged"]
    columns = ("method", summary["metric"], "95 %", "", "trained", "share", "time", "live", "merged")
    return table(columns, rows, right=numbers, gap=2 if width >= WIDE else 1)


def _costs(result: MethodResult, wide: bool) -> list[str]:
    from deltatune.comparison.recommend import percent
    from deltatune.comparison.report.number_format import count, ratio, short_count

    share, params = result.number("share"), result.number("params")
    return [
        count(params) if wide or params is None else short_count(params),
        percent(share) if share is not None else "–",
        seconds(result.number("train_seconds")),
        ratio(result.number("latency_ratio")),
        ratio(result.number("latency_ratio_merged")),
    ]
