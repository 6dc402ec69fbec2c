"""Progress and results of a comparison: a live display in a terminal, else a line per finished run; the final table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from deltatune.cli.ui.live import LiveDisplay, time_left
from deltatune.cli.ui.screen import table, width_of
from deltatune.comparison.report.number_format import count, rate, score, seconds
from deltatune.tasks.metrics.metric_facts import lower_is_better

if TYPE_CHECKING:
    from deltatune.comparison.report.method_results import MethodResult
    from deltatune.comparison.works.cells import Event

Record = Mapping[str, Any]
MOST_RUNNING = 8
"""Running cells that are shown."""
WIDE = 110
"""Columns from which on the results table shows whole methods and exact counts."""
METHOD_WIDTH = 14
"""Fewest characters for the names of the methods; in a narrow terminal costs are left out for them."""
LEAST_NEEDED = ("merged", "share", "tokens", "latency", "time", "trained")
"""Costs in the order in which a narrow table leaves them out; the report has all."""


class ComparisonProgress(LiveDisplay):
    """Shows each event of a comparison. A context manager, so that the live display ends with it."""

    def __init__(self, metric: str) -> None:
        super().__init__()
        self.metric = metric
        if self.console.is_terminal:
            self.live = Live(console=self.console, transient=True, refresh_per_second=4)
        self.done, self.total = 0, 0
        self.seconds_left: float | None = None
        self.running: dict[str, dict[str, Any]] = {}
        """Cells that run now, in the order of their start, with the step of each."""
        self.next: str | None = None
        self.sentence = ""
        """What the last look at the results has found."""
        self.best: Record | None = None
        self.here: set[str | None] = set()
        """Keys of the runs of this session."""

    def __call__(self, event: Event) -> None:
        """Record an event and update the display."""
        self.done, self.total, self.seconds_left = event.done, event.total, event.seconds_left
        if event.kind == "cell_start":
            self.running[event.text], self.next = {}, event.detail.get("next")
        elif event.kind == "step":
            self.running[event.text] = event.detail
        elif event.kind == "look":
            self.sentence = str(event.detail.get("sentence") or "")
            if self.live is None:
                self.console.print(self.sentence, soft_wrap=True)
        elif event.kind in ("cell_done", "cell_failed"):
            self._finish_run(event)
        if isinstance(self.live, Live):
            self.live.update(self.picture())

    def _finish_run(self, event: Event) -> None:
        """Handle the end of a run: of this session, of an earlier one, or the same as one of this session."""
        record: Record = event.detail.get("record") or {}
        began_here = self.running.pop(event.text, None) is not None
        if event.detail.get("kind", "train") != "train" and event.kind == "cell_done":
            return
        cell = record.get("cell")
        earlier = "" if began_here else ", from an earlier session"
        if not earlier:
            self.here.add(cell)
        elif cell is not None and cell in self.here:  # nothing is drawn or random
            earlier = ", the same for every draw and seed"
        if event.kind == "cell_failed":
            problem = str(record.get("error") or "").partition("\n")[0]
            self.console.print(f"failed: {event.text}: {problem}")
            return
        if self._is_better(record):
            self.best = record
        if self.live is None:
            duration = earlier or f" in {seconds(record.get('train_seconds'))}"
            left = f", {time_left(event.seconds_left)} left" if event.seconds_left else ""
            self.console.print(
                f"{event.done}/{event.total}  {event.text}: {score(self._validation(record))}{duration}{left}",
                soft_wrap=True,
            )

    def _validation(self, record: Record | None) -> float | None:
        scores = ((record or {}).get("scores") or {}).get("validation") or {}
        return scores.get(self.metric)

    def _is_better(self, record: Record) -> bool:
        new, old = self._validation(record), self._validation(self.best)
        return new is not None and (old is None or (new < old if lower_is_better(self.metric) else new > old))

    def picture(self) -> Group:
        """The display: a progress bar, the current run, the next one, the best so far."""
        bar = Table.grid(padding=(0, 2, 0, 0))
        left = f"{time_left(self.seconds_left)} left" if self.seconds_left is not None else ""
        bar.add_row(ProgressBar(self.total or None, self.done, width=30), f"{self.done} of {self.total} runs", left)
        lines = Table.grid(padding=(0, 2, 0, 0))
        lines.add_column(no_wrap=True, style="dim")
        lines.add_column(no_wrap=True, overflow="ellipsis")
        for number, (text, detail) in enumerate(list(self.running.items())[:MOST_RUNNING] or [("–", {})]):
            lines.add_row("" if number else "now", f"{text}{_step(detail)}")
        if len(self.running) > MOST_RUNNING:
            lines.add_row("", f"and {len(self.running) - MOST_RUNNING} more")
        lines.add_row("next", self.next or "–")
        lines.add_row("best", self._best())
        if self.sentence:
            lines.add_row("so far", self.sentence)
        return Group(bar, lines)

    def _best(self) -> str:
        if self.best is None:
            return "–"
        where = f"{self.best['method']}, learning rate {rate(self.best['learning_rate'])}"
        return f"{score(self._validation(self.best))} validation {self.metric}: {where}"


def _step(detail: Mapping[str, Any]) -> str:
    """Where a running cell is."""
    return f"   step {detail['step']}/{detail['steps']}   loss {detail['loss']:.3f}" if "steps" in detail else ""


def results(summary: Mapping[str, Any], width: int) -> Table:
    """The results table, the best method first; a narrow one uses short labels and has fewer costs."""
    from deltatune.comparison.report.method_results import method_results

    sign = -1 if lower_is_better(summary["metric"]) else 1
    further = list(dict.fromkeys(split for row in summary["methods"] for split in row.get("more_scores") or {}))
    ranked = sorted(method_results(summary), key=lambda result: (result.score is None, -sign * (result.score or 0.0)))
    best = ranked[0].score if ranked else None
    rows: list[list[Text]] = []
    for result in ranked:
        name = result.row["method"] if width >= WIDE else result.label
        interval = result.interval
        verdict = "best" if result.score == best else "tied" if result.row.get("tied_with_best") else ""
        cells = [
            f"{name}*" if result.reference else name,
            score(result.score) if result.score is not None else "failed",
            f"±{(interval[1] - interval[0]) / 2:.3f}" if interval else "",
            verdict if result.score is not None else "",
            *(score(result.more_scores.get(split)) for split in further),
            *_costs(result, width >= WIDE),
        ]
        rows.append([Text(cell, style="bold" if verdict else "") for cell in cells])
    costs = ["trained", "share", "time", "latency", "merged"]
    if adds_tokens(summary):
        costs.append("tokens")
        for row, result in zip(rows, ranked, strict=True):
            row.append(Text(count(result.number("tokens")), style=row[0].style))
    columns = ["method", summary["metric"], "95 %", "", *further, *costs]
    right, gap = [summary["metric"], "95 %", *further, *costs], 2 if width >= WIDE else 1
    for name in LEAST_NEEDED:
        if name in columns and METHOD_WIDTH + gap + width_of(columns[1:], [row[1:] for row in rows], gap) > width:
            at = columns.index(name)
            columns, rows = columns[:at] + columns[at + 1 :], [row[:at] + row[at + 1 :] for row in rows]
    return table(columns, rows, right=right, gap=gap)


def adds_tokens(summary: Mapping[str, Any]) -> bool:
    """Whether a method of the comparison makes texts longer."""
    return any(row.get("tokens") for row in summary["methods"])


def _costs(result: MethodResult, wide: bool) -> list[str]:
    from deltatune.comparison.report.number_format import ratio, short_count
    from deltatune.comparison.results.recommend import percent

    share, params = result.number("share"), result.number("params")
    return [
        count(params) if wide or params is None else short_count(params),
        percent(share) if share is not None else "–",
        seconds(result.number("train_seconds")),
        ratio(result.number("latency_ratio")),
        ratio(result.number("latency_ratio_merged")),
    ]
