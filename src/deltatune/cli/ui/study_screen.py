"""Screens of a study: what it will run, each comparison as its turn comes, and the closing table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from deltatune.cli.ui.comparison_live import ComparisonProgress
from deltatune.cli.ui.error_screen import Interrupted
from deltatune.cli.ui.screen import console, facts, plural, print_json, say, show, table, width_of
from deltatune.comparison.report.number_format import count, score, size
from deltatune.comparison.report.study_results import UNQUANTIZED
from deltatune.core.errors import DeltatuneError

if TYPE_CHECKING:
    from deltatune.comparison.study import StudyPlan, StudyStage

METHOD_WIDTH = 24
"""Characters of a method in a table of many comparisons."""
LARGE_STUDY = 8
"""Comparisons from which on the table has means and ranks alone; the page has all."""


def run_on_screen(study: StudyPlan, as_json: bool) -> None:
    """Run a study, following its comparisons, and print its result.

    Raises DeltatuneError if every comparison failed, Interrupted after Ctrl-C.
    """
    from deltatune.comparison.study import run

    finished = 0

    @contextmanager
    def follow(stage: StudyStage) -> Iterator[ComparisonProgress]:
        nonlocal finished
        where = study.axes.describe(stage.point)
        show(f"\ncomparison {stage.number} of {stage.total}: {where}", stderr=True)
        for note in stage.plan.notes():
            show(f"note: {note}", stderr=True)
        with ComparisonProgress(stage.plan.session.task.metric) as progress:
            yield progress
        finished += 1

    _introduce(study)
    try:
        summary = run(study, follow)
    except KeyboardInterrupt:
        kept = f"{finished} of {len(study.points)} comparisons are finished in {study.out}"
        raise Interrupted(f"{kept}; the same command resumes") from None
    if as_json:
        print_json(summary)
    else:
        _report(study, summary)
    if summary["failed"] and all(comparison["summary"] is None for comparison in summary["comparisons"]):
        raise DeltatuneError(f"every comparison failed; {study_failures(study, summary)[0]}")


def _introduce(study: StudyPlan) -> None:
    axes = [
        (axis["name"], ", ".join(_value_text(axis["name"], value) for value in axis["values"]))
        for axis in study.axes.to_json()
    ]
    comparisons = f"{len(study.points)}, checked before the first training"
    show(facts([*axes, ("comparisons", comparisons), ("folder", str(study.out))]), "", aside=True)
    if study.notes:
        show(facts([("note", note) for note in study.notes]), "", aside=True)


def _value_text(axis: str, value: Any) -> str:
    if value is None and axis == "quantize":
        return UNQUANTIZED
    return "all" if value is None else count(value) if isinstance(value, int) else str(value)


def _report(study: StudyPlan, summary: Mapping[str, Any]) -> None:
    """The closing screen: the table, totals, the recommendation, what failed, where the page is."""
    if summary["methods"]:
        show(study_table(study, summary, console().width), "")
    totals = _totals(summary, study.tasks)
    if totals is not None:
        show(totals, "")
    for suite in summary["suites"]:
        show(_suite_line(suite))
    show(str(summary["recommendation"]["sentence"]))
    stored = quantizations_table(summary)
    if stored is not None:
        show("", stored, "")
    for note in summary["notes"][len(study.notes) :]:
        show(f"note: {note}")
    for line in study_failures(study, summary):
        show(f"failed: {line}")
    say(f"report: {study.out / 'study.html'}")


def study_table(study: StudyPlan, summary: Mapping[str, Any], width: int) -> Table:
    """A row for each method, the best mean rank first: its score in every comparison, the mean, the mean rank."""
    names = [study.axes.describe(point) for point in study.points]
    ranked = sorted(summary["averages"], key=lambda row: math.inf if row["rank"] is None else row["rank"])
    columns = ["method", *names, "mean", "rank"]
    rows = [
        [
            Text(row["method"]),
            *(Text(score(row["scores"].get(str(i)))) for i in range(len(names))),
            Text(score(row["mean"])),
            Text("–" if row["rank"] is None else f"{row['rank']:.2g}"),
        ]
        for row in ranked
    ]
    if len(names) >= LARGE_STUDY or METHOD_WIDTH + width_of(columns[1:], [row[1:] for row in rows]) > width:
        columns, rows = ["method", "mean", "rank"], [[row[0], *row[-2:]] for row in rows]
    return table(columns, rows, right=columns[1:])


def _totals(summary: Mapping[str, Any], tasks: int | None) -> Table | None:
    """What `tasks` tasks take on disk with each method; None if nobody asked."""
    rows = [row for row in summary["totals"] if row["tasks"] == tasks]
    if not rows:
        return None
    several = len({str(row["at"]) for row in rows}) > 1
    columns = ["method", *(["model", "base", "budget"] if several else []), "tasks", "trained", "on disk", "copies"]
    lines = [
        [
            row["method"],
            *(
                [
                    str(row["at"]["model"]),
                    row["at"]["quantize"] or UNQUANTIZED,
                    str(row["at"]["budget"] or "as written"),
                ]
                if several
                else []
            ),
            count(row["tasks"]),
            count(row["params"]),
            size(row["bytes"]),
            size(row["copies"]),
        ]
        for row in rows
    ]
    return table(columns, lines, right=["tasks", "trained", "on disk", "copies"])


def quantizations_table(summary: Mapping[str, Any]) -> Table | None:
    """What each quantisation costs, beside how often it is as good; None for a study of one."""
    found = summary.get("quantizations") or {}
    lines = []
    for row in found.get("rows") or ():
        pairs = [p for p in found["pairs"] if (p["method"], p["scheme"]) == (row["method"], row["scheme"])]
        kinds = [pair["verdict"] for pair in pairs]
        verdicts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
        ratio = row["time_ratio"]
        lines.append([
            row["method"], row["scheme"] or UNQUANTIZED, verdicts, size(row["base_bytes"]),
            size(row["peak_memory_bytes"]), "–" if ratio is None else f"{ratio:.2f}×",
        ])  # fmt: skip
    columns = ["method", "base", f"against {found.get('reference') or UNQUANTIZED}", "base size", "peak", "time"]
    return table(columns, lines, right=columns[3:]) if lines else None


def _suite_line(suite: Mapping[str, Any]) -> str:
    """`GLUE average of 4 tasks: LoRA() 0.712, ...`"""
    known = [row for row in suite["methods"] if row["average"] is not None]
    ranked = sorted(known, key=lambda row: -row["average"])
    shown = ", ".join(f"{row['method']} {score(row['average'])}" for row in ranked) or "no method has all scores"
    return f"{suite['suite']} average of {plural(len(suite['tasks']), 'task')}: {shown}"


def study_failures(study: StudyPlan, summary: Mapping[str, Any]) -> list[str]:
    """A line for each comparison that failed or was not run."""
    return [
        f"{study.axes.describe(point)}: {str(comparison['error']).partition(chr(10))[0]}"
        for point, comparison in zip(study.points, summary["comparisons"], strict=True)
        if comparison["error"]
    ]
