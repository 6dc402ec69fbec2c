"""The main figure: what score each method buys with how many trained parameters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from deltatune.comparison.metric_scales import LOWER_IS_BETTER
from deltatune.comparison.report import number_format as formats
from deltatune.comparison.report.entries import Entry
from deltatune.comparison.report.label_layout import NEAR, Box, Place, Point, place, spread
from deltatune.comparison.report.svg import (
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
from deltatune.comparison.statistics import pareto

LABEL = 12.0
"""Size of the labels beside marks, pixels."""

GAP = 13.0
"""Pixels between marks that stand side by side."""

EDGE = 9.0
"""Pixels between a mark and a line it must not touch."""

ZERO = 54.0
"""Width of the strip for methods without a parameter of their own: zero has no place on a log axis."""


@dataclass(frozen=True)
class Spot:
    """A method's place in the figure of score against parameters."""

    entry: Entry
    score: float
    low: float
    high: float
    x: float


def score_against_parameters(
    methods: Sequence[Entry], metric: str, budget: Mapping[str, Any] | None, width: float, height: float
) -> str:
    """Score with its interval against trainable parameters (log), the Pareto front, the budget as a line."""
    scored = [entry for entry in methods if entry.score is not None]
    if not scored:
        return ""
    left, right, top, bottom = 48.0, width - 14.0, 30.0, height - 46.0
    zero = any(not entry.number("params") for entry in scored)
    limit = formats.number(budget, "params") if budget else None
    start = left + (ZERO if zero else 0)
    across = _across(scored, limit, start, right)
    up = linear([value for entry in scored for value in (entry.score or 0, *(entry.interval or ()))], bottom, top)
    spots = _spots(scored, across, left + ZERO * 0.45, limit)
    note = ", lower is better" if metric in LOWER_IS_BETTER else ""
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
    parts += [_front(spots, up, right, metric in LOWER_IS_BETTER), *(_whisker_and_mark(spot, up) for spot in spots)]
    parts.append(_labels(spots, up, Box(left + 2, top + 2, width - 4, bottom - 4), across.at(limit) if limit else None))
    return svg(
        width, height, "".join(parts), f"Test {metric} against trainable parameters", "wide" if width > 500 else "slim"
    )


def _across(scored: Sequence[Entry], limit: float | None, start: float, right: float) -> Axis:
    """The log axis, with room left of the budget for all that were fitted to it: they have nearly the same cost."""
    params = [entry.number("params") or 0.0 for entry in scored]
    axis = logarithmic([*params, limit or 0], start, right)
    fitted = sum(bool(limit and 0 < each <= limit) for each in params)
    for _ in range(40):
        if (
            not limit
            or axis.at(limit) - start >= 2 * EDGE + fitted * GAP * 0.75
            or axis.at(limit) > (start + right) / 2
        ):
            break
        axis = replace(axis, low=axis.low * 0.8)
    return axis


def _spots(scored: Sequence[Entry], across: Axis, zero: float, limit: float | None) -> list[Spot]:
    """Marks that would cover each other stand side by side, but never on the wrong side of the budget."""
    line_at = across.at(limit) if limit else across.start
    sides: dict[str, list[Entry]] = {"none": [], "within": [], "beyond": []}
    for entry in sorted(scored, key=lambda entry: (entry.number("params") or 0, -(entry.score or 0))):
        params = entry.number("params") or 0
        sides["none" if not params else "within" if limit and params <= limit else "beyond"].append(entry)
    places = (
        [zero + GAP * (i - (len(sides["none"]) - 1) / 2) for i in range(len(sides["none"]))]
        + _side_by_side(sides["within"], across, across.start + EDGE, line_at - EDGE)
        + _side_by_side(sides["beyond"], across, line_at + EDGE, across.end - EDGE)
    )
    found = []
    for entry, x in zip([entry for some in sides.values() for entry in some], places, strict=True):
        score = entry.score or 0.0
        low, high = entry.interval or (score, score)
        found.append(Spot(entry, score, low, high, x))
    return found


def _side_by_side(some: Sequence[Entry], across: Axis, low: float, high: float) -> list[float]:
    gap = min(GAP, (high - low) / max(len(some) - 1, 1))
    return spread([across.at(entry.number("params") or 1) for entry in some], gap, low, high)


def _whisker_and_mark(spot: Spot, up: Axis) -> str:
    row = spot.entry
    title = f"{row.row['method']}: {spot.score:.3f} (95 % CI {spot.low:.3f}-{spot.high:.3f}), "
    title += f"{formats.count(row.number('params'))} trainable parameters"
    y, low, high = up.at(spot.score), up.at(spot.low), up.at(spot.high)
    bars = [(spot.x, low, spot.x, high), (spot.x - 3, low, spot.x + 3, low), (spot.x - 3, high, spot.x + 3, high)]
    return group(row.look, "".join(line(*bar, "whisker") for bar in bars) + mark(row.look, spot.x, y), title)


def _front(spots: Sequence[Spot], up: Axis, right: float, lower: bool) -> str:
    """The best score at or below each cost, as a staircase. lower: a low score is good."""
    steps: list[tuple[float, float]] = []
    for i in pareto([(spot.entry.number("params") or 0.0, spot.score) for spot in spots], lower):
        y = up.at(spots[i].score)
        if steps:
            steps.append((spots[i].x, steps[-1][1]))
        steps.append((spots[i].x, y))
    return path([*steps, (right, steps[-1][1])], "front")


def _zero_strip(left: float, start: float, top: float, bottom: float) -> str:
    middle = left + ZERO * 0.45
    return (
        line(left, bottom, start - 10, bottom, "ground")
        + text(middle, bottom + 16, "0", "middle", "tick")
        + text(middle, bottom + 29, "head only", "middle", "tick")
        + line(start - 8, top, start - 8, bottom, "break")
    )


def _budget_line(x: float, top: float, bottom: float, right: float, budget: Mapping[str, Any]) -> str:
    words = f"budget {budget.get('text') or formats.short_count(float(budget['params']))}"
    anchor = "end" if x + text_width(words, 11) / 2 > right else "middle"
    return line(x, top - 6, x, bottom, "budget") + text(x, top - 11, words, anchor, "tick")


def _labels(spots: Sequence[Spot], up: Axis, bounds: Box, budget: float | None) -> str:
    names = [fit(spot.entry.label, LABEL, 170 if bounds.right > 500 else 120) for spot in spots]
    points = [
        Point(spot.x, up.at(spot.score), text_width(name, LABEL), LABEL + 2)
        for spot, name in zip(spots, names, strict=True)
    ]
    obstacles = []
    for spot in spots:
        y = up.at(spot.score)
        obstacles.append((Box(spot.x - 7, y - 7, spot.x + 7, y + 7), 30.0))
        obstacles.append((Box(spot.x - 3, up.at(spot.high) - 3, spot.x + 3, up.at(spot.low) + 3), 8.0))
    if budget is not None:
        obstacles.append((Box(budget - 1, bounds.top, budget + 1, bounds.bottom), 2.0))
    placed = place(points, obstacles, bounds)
    return "".join(map(_label, spots, names, points, placed))


def _label(spot: Spot, name: str, point: Point, spot_at: Place) -> str:
    box, (x, y) = spot_at.box, spot_at.end
    words = text(box.left + 1, box.bottom - 4, name, class_="label")
    if spot_at.distance <= NEAR:
        return group(spot.entry.look, words)
    return group(spot.entry.look, line(point.x, point.y, x, y, "leader") + words)
