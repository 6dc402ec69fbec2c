"""Scores along an axis of a study (rows, parameters, model size, length) in panels, with a line for each method."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltatune.comparison.report import number_format as formats
from deltatune.comparison.report.figures.label_layout import spread
from deltatune.comparison.report.figures.svg import (
    Axis,
    MarkerStyle,
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
)

LOG_FROM = 10.0
"""An axis is logarithmic where its largest value is more than so many times its smallest."""
NAMES = 132.0
"""Pixels for the names of the methods beside a panel."""
Point = tuple[float, float, float, float]
"""x, score, and the ends of its interval."""


@dataclass(frozen=True)
class Series:
    """The scores of one method along an axis."""

    label: str
    style: MarkerStyle
    points: Sequence[Point]


def read_points(points: Sequence[Mapping[str, Any]]) -> list[Point]:
    """Points of study.json that can be drawn, by rising x."""
    read = []
    for point in points:
        x, score, ends = formats.number(point, "x"), formats.number(point, "score"), point.get("ci")
        if x is not None and score is not None:
            low, high = (float(ends[0]), float(ends[1])) if ends else (score, score)
            read.append((x, score, low, high))
    return sorted(read)


def series_panel(title: str, axis: str, metric: str, lines: Sequence[Series]) -> str:
    """One panel with a line for each method; "" if there are no two values of x."""
    points = [point for each in lines for point in each.points]
    values = {x for x, *_ in points}
    if len(values) < 2:
        return ""
    width, height = 366.0, max(250.0, 80.0 + 12.5 * len(lines))
    left, bottom = 40.0, height - 38
    log = min(values) > 0 and max(values) / min(values) > LOG_FROM
    scale = logarithmic if log else linear
    across = scale(values, left + 4, width - NAMES - 12, pad=0.05)
    up = linear([end for _, _, *ends in points for end in ends], bottom, 40)
    parts = [
        text(0, 13, fit(title, 12.5, width), class_="name"),
        text(left, 31, metric, class_="note"),
        left_axis(up, left, width - NAMES - 8, {value: f"{value:g}" for value in up.ticks(4)}),
        bottom_axis(across, bottom, {value: formats.short_count(value) for value in across.ticks(3)}),
        text(width - NAMES - 8, height - 5, f"{axis}{', log scale' if log else ''}", "end", "axis"),
    ]
    dodge = min(2.5, 24.0 / len(lines))
    for i, each in enumerate(lines):
        parts.append(_line(each, across, up, (i - (len(lines) - 1) / 2) * dodge))
    parts.append(_names(lines, up, width - NAMES, (40.0, bottom)))
    return svg(width, height, "".join(parts), f"{title}: {metric} against {axis}")


def _line(series: Series, across: Axis, up: Axis, shift: float) -> str:
    places = [(across.at(x) + shift, up.at(score)) for x, score, _, _ in series.points]
    bars = "".join(
        line(x, up.at(low), x, up.at(high), "whisker")
        for (x, _), (_, _, low, high) in zip(places, series.points, strict=True)
        if low < high
    )
    marks = "".join(mark(series.style, x, y, 3.2) for x, y in places)
    told = "; ".join(
        f"{formats.short_count(x)}: {score:.3f} ({low:.3f}-{high:.3f})" for x, score, low, high in series.points
    )
    return group(series.style, bars + path(places) + marks, f"{series.label}. {told}")


def _names(lines: Sequence[Series], up: Axis, left: float, bounds: tuple[float, float]) -> str:
    """The names at the right, in the order of the last scores, moved apart."""
    ordered = sorted((each for each in lines if each.points), key=lambda each: up.at(each.points[-1][1]))
    gap = min(12.5, (bounds[1] - bounds[0]) / max(len(ordered) - 1, 1))
    places = spread([up.at(each.points[-1][1]) for each in ordered], gap, *bounds)
    names = ""
    for each, y in zip(ordered, places, strict=True):
        label = text(left + 12, y + 3.5, fit(each.label, 12.5, NAMES - 14), class_="label")
        names += group(each.style, mark(each.style, left + 4, y, 3.2) + label)
    return names


def size_families(methods: Sequence[str]) -> dict[tuple[str, str], list[tuple[float, str]]]:
    """Methods that differ in one number: (what they share, the field) -> (value, method), by rising value.

    `Prompt(length=1)`, `Prompt(length=20)` and `Prompt(length=100)` are a family along the prompt's length.
    """
    families: dict[tuple[str, str], list[tuple[float, str]]] = {}
    for method in dict.fromkeys(methods):
        for field, value, rest in _numbers(method):
            families.setdefault((rest, field), []).append((value, method))
    return {key: sorted(each) for key, each in families.items() if len({value for value, _ in each}) > 1}


def _numbers(method: str) -> list[tuple[str, float, str]]:
    """Each number of a method's text: its field, its value, and the text without it."""
    try:
        call = ast.parse(method, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    if not isinstance(call, ast.Call) or call.args:
        return []
    found = []
    for keyword in call.keywords:
        value = getattr(keyword.value, "value", None)
        if keyword.arg and isinstance(value, int | float) and not isinstance(value, bool):
            others = ", ".join(ast.unparse(other) for other in call.keywords if other is not keyword)
            found.append((keyword.arg, float(value), f"{ast.unparse(call.func)}({others})"))
    return found
