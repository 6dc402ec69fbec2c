"""The main figure: test score against trainable parameters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from deltatune.comparison.report import number_format as formats
from deltatune.comparison.report.figures.label_layout import (
    NO_LEADER,
    Box,
    LabelledPoint,
    Placement,
    place_labels,
    spread,
)
from deltatune.comparison.report.figures.svg import (
    Axis,
    bottom_axis,
    fit,
    group,
    left_axis,
    line,
    linear,
    logarithmic,
    mark,
    path,
    svg,
    text,
    text_width,
)
from deltatune.comparison.report.method_results import MethodResult
from deltatune.comparison.statistics.score_statistics import pareto
from deltatune.tasks.metrics.metric_facts import lower_is_better

LABEL_SIZE = 12.0
"""Font size of labels, pixels."""

GAP = 13.0
"""Pixels between markers that are moved apart."""

EDGE = 9.0
"""Pixels between a marker and a line that it must not touch."""

ZERO_STRIP = 54.0
"""Width of the strip for methods without parameters besides the head: a log axis has no zero."""


@dataclass(frozen=True)
class PlottedMethod:
    """A method with its coordinates in the figure."""

    result: MethodResult
    score: float
    low: float
    high: float
    x: float


def score_against_parameters(
    methods: Sequence[MethodResult], metric: str, budget: Mapping[str, Any] | None, width: float, height: float
) -> str:
    """Score with its interval against trainable parameters (log), the Pareto front, the budget as a line."""
    scored = [result for result in methods if result.score is not None]
    if not scored:
        return ""
    left, right, top, bottom = 48.0, width - 14.0, 30.0, height - 46.0
    zero = any(not result.number("params") for result in scored)
    limit = formats.number(budget, "params") if budget else None
    start = left + (ZERO_STRIP if zero else 0)
    across = _across(scored, limit, start, right)
    up = linear([value for result in scored for value in (result.score or 0, *(result.interval or ()))], bottom, top)
    plotted = _plotted(scored, across, left + ZERO_STRIP * 0.45, limit)
    note = ", lower is better" if lower_is_better(metric) else ""
    parts = [
        left_axis(up, left, right, {value: f"{value:g}" for value in up.ticks(6)}),
        bottom_axis(across, bottom, {value: formats.short_count(value) for value in across.ticks(6)}),
        text(left - 40, 14, f"test {metric}{note}", class_="axis"),
        text(right, height - 8, "trainable parameters, log scale", "end", "axis"),
    ]
    if zero:
        parts.append(_zero_strip(left, start, top, bottom))
    if limit:
        parts.append(_budget_line(across.at(limit), top, bottom, right, budget or {}))
    parts += [
        _front(plotted, up, right, lower_is_better(metric)),
        *(_interval_and_marker(method, up) for method in plotted),
    ]
    bounds = Box(left + 2, top + 2, width - 4, bottom - 4)
    parts.append(_labels(plotted, up, bounds, across.at(limit) if limit else None))
    class_ = "wide" if width > 500 else "narrow"
    return svg(width, height, "".join(parts), f"Test {metric} against trainable parameters", class_)


def _across(scored: Sequence[MethodResult], limit: float | None, start: float, right: float) -> Axis:
    """The log axis, with room left of the budget for all methods fitted to it, as they have nearly the same cost."""
    params = [result.number("params") or 0.0 for result in scored]
    axis = logarithmic([*params, limit or 0], start, right)
    fitted = sum(bool(limit and 0 < count <= limit) for count in params)
    for _ in range(40):
        if (
            not limit
            or axis.at(limit) - start >= 2 * EDGE + fitted * GAP * 0.75
            or axis.at(limit) > (start + right) / 2
        ):
            break
        axis = replace(axis, low=axis.low * 0.8)
    return axis


def _plotted(scored: Sequence[MethodResult], across: Axis, zero: float, limit: float | None) -> list[PlottedMethod]:
    """Move overlapping markers apart, but never across the budget."""
    line_at = across.at(limit) if limit else across.start
    sides: dict[str, list[MethodResult]] = {"none": [], "within": [], "beyond": []}
    for result in sorted(scored, key=lambda result: (result.number("params") or 0, -(result.score or 0))):
        params = result.number("params") or 0
        sides["none" if not params else "within" if limit and params <= limit else "beyond"].append(result)
    positions = (
        [zero + GAP * (i - (len(sides["none"]) - 1) / 2) for i in range(len(sides["none"]))]
        + _move_apart(sides["within"], across, across.start + EDGE, line_at - EDGE)
        + _move_apart(sides["beyond"], across, line_at + EDGE, across.end - EDGE)
    )
    plotted = []
    for result, x in zip([result for group_ in sides.values() for result in group_], positions, strict=True):
        score = result.score or 0.0
        low, high = result.interval or (score, score)
        plotted.append(PlottedMethod(result, score, low, high, x))
    return plotted


def _move_apart(results: Sequence[MethodResult], across: Axis, low: float, high: float) -> list[float]:
    gap = min(GAP, (high - low) / max(len(results) - 1, 1))
    return spread([across.at(result.number("params") or 1) for result in results], gap, low, high)


def _interval_and_marker(method: PlottedMethod, up: Axis) -> str:
    result = method.result
    title = f"{result.row['method']}: {method.score:.3f} (95 % CI {method.low:.3f}-{method.high:.3f}), "
    title += f"{formats.count(result.number('params'))} trainable parameters"
    x, y, low, high = method.x, up.at(method.score), up.at(method.low), up.at(method.high)
    bars = [(x, low, x, high), (x - 3, low, x + 3, low), (x - 3, high, x + 3, high)]
    return group(result.style, "".join(line(*bar, "whisker") for bar in bars) + mark(result.style, x, y), title)


def _front(methods: Sequence[PlottedMethod], up: Axis, right: float, lower: bool) -> str:
    """The Pareto front as a staircase. lower: a low score is good."""
    steps: list[tuple[float, float]] = []
    for i in pareto([(method.result.number("params") or 0.0, method.score) for method in methods], lower):
        y = up.at(methods[i].score)
        if steps:
            steps.append((methods[i].x, steps[-1][1]))
        steps.append((methods[i].x, y))
    return path([*steps, (right, steps[-1][1])], "front")


def _zero_strip(left: float, start: float, top: float, bottom: float) -> str:
    middle = left + ZERO_STRIP * 0.45
    return (
        line(left, bottom, start - 10, bottom, "ground")
        + text(middle, bottom + 16, "0", "middle", "tick")
        + text(middle, bottom + 29, "none", "middle", "tick")
        + line(start - 8, top, start - 8, bottom, "break")
    )


def _budget_line(x: float, top: float, bottom: float, right: float, budget: Mapping[str, Any]) -> str:
    caption = f"budget {budget.get('text') or formats.short_count(float(budget['params']))}"
    anchor = "end" if x + text_width(caption, 11) / 2 > right else "middle"
    return line(x, top - 6, x, bottom, "budget") + text(x, top - 11, caption, anchor, "tick")


def _labels(methods: Sequence[PlottedMethod], up: Axis, bounds: Box, budget: float | None) -> str:
    names = [fit(method.result.label, LABEL_SIZE, 170 if bounds.right > 500 else 120) for method in methods]
    points = [
        LabelledPoint(method.x, up.at(method.score), text_width(name, LABEL_SIZE), LABEL_SIZE + 2)
        for method, name in zip(methods, names, strict=True)
    ]
    obstacles = []
    for method in methods:
        y = up.at(method.score)
        obstacles.append((Box(method.x - 7, y - 7, method.x + 7, y + 7), 30.0))
        obstacles.append((Box(method.x - 3, up.at(method.high) - 3, method.x + 3, up.at(method.low) + 3), 8.0))
    if budget is not None:
        obstacles.append((Box(budget - 1, bounds.top, budget + 1, bounds.bottom), 2.0))
    placed = place_labels(points, obstacles, bounds)
    return "".join(map(_label, methods, names, points, placed))


def _label(method: PlottedMethod, name: str, point: LabelledPoint, placement: Placement) -> str:
    box, (x, y) = placement.box, placement.end
    # Fonts may be wider than measured: a label grows away from its marker.
    left = box.right <= point.x
    label = text(box.right - 1 if left else box.left + 1, box.bottom - 4, name, "end" if left else "start", "label")
    if placement.distance <= NO_LEADER:
        return group(method.result.style, label)
    return group(method.result.style, line(point.x, point.y, x, y, "leader") + label)
