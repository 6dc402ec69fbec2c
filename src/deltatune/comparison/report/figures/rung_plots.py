"""Search by successive halving as small figures: validation scores at every rung, and which runs went on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deltatune.comparison.report import number_format as formats
from deltatune.comparison.report.figures.plots import panel_axes, panel_caption
from deltatune.comparison.report.figures.svg import Axis, bottom_axis, group, linear, path, svg, tag, text
from deltatune.comparison.report.method_results import MethodResult

Run = tuple[str, float]
"""What a line of the figure is: the method with its size, and the learning rate."""
Points = list[tuple[float, float, bool]]
"""Step, score, whether the run went on or was the last one."""


def rung_plots(methods: Sequence[MethodResult], metric: str) -> list[str]:
    """One panel for each method whose search had rungs, all on one scale; none if runs were compared at one step only.

    What they scored at a single step is in the figure of the learning rates.
    """
    searches = {result.label: _runs(result.row.get("rungs") or []) for result in methods}
    points = [point for runs in searches.values() for line in runs.values() for point in line]
    if len({step for step, _, _ in points}) < 2:
        return []
    width, height = 210.0, 176.0
    across = Axis(0.0, max(step for step, _, _ in points) or 1.0, 38.0, width - 10)
    up = linear([score for _, score, _ in points], height - 36, 40, pad=0.1)
    panels = []
    for result in methods:
        runs = searches[result.label]
        if not runs:
            continue
        lines = "".join(_line(run, line, across, up) for run, line in runs.items())
        parts = [panel_caption(result, width), panel_axes(up, across, 3), group(result.style, lines)]
        parts.append(text(across.start, 31, f"validation {metric}", class_="note"))
        parts.append(bottom_axis(across, height - 36, {value: f"{value:g}" for value in across.ticks(3)}))
        parts.append(text(width - 8, height - 5, "training step", "end", "axis"))
        panels.append(svg(width, height, "".join(parts), f"Search of {result.label}: {len(runs)} runs"))
    return panels


def _runs(rungs: Sequence[Mapping[str, Any]]) -> dict[Run, Points]:
    runs: dict[Run, Points] = {}
    for rung in rungs:
        step, score = formats.number(rung, "step"), formats.number(rung, "score")
        if step is not None and score is not None:
            run = str(rung.get("method") or ""), formats.number(rung, "learning_rate") or 0.0
            runs.setdefault(run, []).append((step, score, bool(rung.get("kept"))))
    return {run: sorted(points) for run, points in runs.items()}


def _line(run: Run, points: Points, across: Axis, up: Axis) -> str:
    """A run through its rungs; one that was stopped is thin and ends in a cross."""
    places = [(across.at(step), up.at(score)) for step, score, _ in points]
    kept = points[-1][2]
    title = f"{run[0]} at {formats.rate(run[1])}: " + ", ".join(f"{score:.3f}" for _, score, _ in points)
    x, y = places[-1]
    cross = [path([(x - 3, y - 3), (x + 3, y + 3)], "stopped"), path([(x - 3, y + 3), (x + 3, y - 3)], "stopped")]
    end = tag("circle", cx=x, cy=y, r=3.4, class_="dot") if kept else "".join(cross)
    return tag("g", tag("title", formats.html(title)) + path(places, "line" if kept else "stopped") + end)
