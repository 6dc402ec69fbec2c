"""The small figures as SVG: learning curves, sensitivity to the learning rate, costs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from deltatune.comparison.report import number_format as formats
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
    tag,
    text,
)
from deltatune.comparison.report.method_results import MethodResult


def learning_curves(methods: Sequence[MethodResult], metric: str) -> list[str]:
    """One panel per method: smoothed training loss of every seed, and the validation score if there is one."""
    shown = [result for result in methods if result.row.get("curves")]
    losses = {result.label: [smooth(curve.get("loss") or []) for curve in result.row["curves"]] for result in shown}
    scores = {
        result.label: [_finite_points(curve.get("validation") or []) for curve in result.row["curves"]]
        for result in shown
    }
    if not any(points for curves in losses.values() for points in curves):
        return []
    width, floor = 210.0, 112.0
    validated = any(points for curves in scores.values() for points in curves)
    height = 242.0 if validated else 148.0
    steps = _values([*losses.values(), *scores.values()], 0)
    across = Axis(0.0, max(steps) or 1.0, 34.0, width - 8)
    loss_axis = linear(_values(losses.values(), 1), floor, 38, floor=0.0)
    score_axis = linear(_values(scores.values(), 1), height - 36, floor + 26)
    panels = []
    for result in shown:
        parts = [panel_caption(result, width), panel_axes(loss_axis, across, 3)]
        parts += [
            _background_curves(losses, result, across, loss_axis),
            _curves(result, losses[result.label], across, loss_axis),
        ]
        parts.append(text(across.start, 31, "training loss", class_="note"))
        if validated:
            parts += [panel_axes(score_axis, across, 3), _background_curves(scores, result, across, score_axis)]
            parts += [_curves(result, scores[result.label], across, score_axis, dots=True)]
            parts.append(text(across.start, floor + 19, f"validation {metric}", class_="note"))
        parts.append(bottom_axis(across, height - 36, {value: f"{value:g}" for value in across.ticks(3)}))
        parts.append(text(width - 8, height - 5, "training step", "end", "axis"))
        panels.append(svg(width, height, "".join(parts), f"Learning curves of {result.label}"))
    return panels


def learning_rate_plots(methods: Sequence[MethodResult], metric: str) -> list[str]:
    """One panel per method: validation score at every learning rate tried, with a ring around the chosen one."""
    tried = {result.label: [sorted(_finite_points(result.row.get("search") or []))] for result in methods}
    tried = {label: [[(rate, score) for rate, score in curves[0] if rate > 0]] for label, curves in tried.items()}
    shown = [result for result in methods if tried[result.label][0]]
    if not shown:
        return []
    width, height = 210.0, 176.0
    across = logarithmic(_values(tried.values(), 0), 38.0, width - 10)
    up = linear(_values(tried.values(), 1), height - 36, 56, pad=0.12)
    panels = []
    for result in shown:
        points = tried[result.label][0]
        marks = path([(across.at(rate), up.at(score)) for rate, score in points])
        for rate, score in points:
            dot = tag("circle", cx=across.at(rate), cy=up.at(score), r=2.8, class_="dot")
            marks += tag("g", tag("title", f"{formats.rate(rate)}: {formats.score(score)}") + dot)
        parts = [panel_caption(result, width), panel_axes(up, across, 3), _background_curves(tried, result, across, up)]
        parts.append(text(across.start, 31, f"validation {metric}", class_="note"))
        parts += [group(result.style, marks + _chosen_point(result, points, across, up, width))]
        parts.append(bottom_axis(across, height - 36, {value: formats.rate(value) for value in across.ticks(3)}))
        parts.append(text(width - 8, height - 5, "learning rate", "end", "axis"))
        panels.append(svg(width, height, "".join(parts), f"Validation {metric} by learning rate, {result.label}"))
    return panels


def cost_bars(methods: Sequence[MethodResult]) -> list[str]:
    """Bars of training time, peak memory, latency and generation, one panel each; costs not measured are left out."""
    latency = _bars(methods, "Latency, bare model = 1", "latency_ratio", formats.ratio, "latency_ratio_merged")
    panels = [
        _bars(methods, "Training time, one seed", "train_seconds", formats.seconds),
        _bars(methods, "Peak memory in training", "peak_memory_bytes", formats.size),
        latency,
        _bars(methods, "Generation latency, bare model = 1", "writing_ratio", formats.ratio),
    ]
    return [picture for picture in panels if picture]


def smooth(points: Sequence[Sequence[float | None]], keep: int = 80) -> list[tuple[float, float]]:
    """A moving average over a twelfth of the curve, thinned to about `keep` points to keep the page small."""
    finite = _finite_points(points)
    radius = max(1, len(finite) // 24)
    stride = max(1, len(finite) // keep)
    smoothed = []
    for i in range(0, len(finite), stride):
        window = [value for _, value in finite[max(0, i - radius) : i + radius + 1]]
        smoothed.append((finite[i][0], sum(window) / len(window)))
    return smoothed


def _finite_points(points: Sequence[Sequence[float | None]]) -> list[tuple[float, float]]:
    rows = [{"x": x, "y": y} for x, y in points]
    numbers = [(formats.number(row, "x"), formats.number(row, "y")) for row in rows]
    return [(x, y) for x, y in numbers if x is not None and y is not None]


def _values(all_curves: Any, coordinate: int) -> list[float]:
    return [point[coordinate] for curves in all_curves for curve in curves for point in curve]


def panel_caption(result: MethodResult, width: float) -> str:
    """The marker and the label of the method that a panel shows."""
    name = fit(result.label, 12.5, width - 26)
    return group(result.style, mark(result.style, 7, 9, 4.2)) + text(17, 13, name, class_="name")


def panel_axes(up: Axis, across: Axis, ticks: int) -> str:
    """The grid of a panel with values on the left."""
    return left_axis(up, across.start, across.end, {value: f"{value:g}" for value in up.ticks(ticks)})


def _background_curves(
    curves: Mapping[str, list[list[tuple[float, float]]]], result: MethodResult, across: Axis, up: Axis
) -> str:
    """The other methods in grey, for comparison."""
    others = [seeds[0] for label, seeds in curves.items() if label != result.label and seeds]
    return "".join(
        path([(across.at(x), up.at(y)) for x, y in points[:: 1 + len(points) // 40]], "behind") for points in others
    )


def _curves(
    result: MethodResult, curves: Sequence[Sequence[tuple[float, float]]], across: Axis, up: Axis, dots: bool = False
) -> str:
    lines = "".join(path([(across.at(x), up.at(y)) for x, y in points]) for points in curves)
    ends = [point for points in curves for point in points] if dots else []
    return group(
        result.style, lines + "".join(tag("circle", cx=across.at(x), cy=up.at(y), r=2, class_="dot") for x, y in ends)
    )


def _chosen_point(
    result: MethodResult, points: Sequence[tuple[float, float]], across: Axis, up: Axis, width: float
) -> str:
    chosen = result.number("learning_rate")
    for rate, score in points:
        if chosen is not None and abs(rate - chosen) <= 1e-6 * chosen:
            x, y = across.at(rate), up.at(score)
            anchor = "middle" if 60 < x < width - 30 else "start" if x <= 60 else "end"
            ring = tag("circle", cx=x, cy=y, r=6, class_="ring")
            return ring + text(x, y - 10, formats.rate(rate), anchor, "label")
    return ""


def _bars(
    methods: Sequence[MethodResult],
    title: str,
    key: str,
    to_text: Callable[[float | None], str],
    second: str | None = None,
) -> str:
    measured = [result for result in methods if result.number(key) is not None]
    if not measured:
        return ""
    width, left, step = 340.0, 128.0, 21.0
    largest = max(max(result.number(key) or 0, result.number(second) or 0 if second else 0) for result in measured)
    across = Axis(0.0, largest or 1.0, left, width - (96 if second else 66))
    parts, y = [text(0, 13, title, class_="name")], 26.0
    for before, result in zip([measured[0], *measured], measured, strict=False):
        y += 9 if result.reference and not before.reference else 0
        parts.append(
            _bar(result, across, y, result.number(key) or 0, to_text, result.number(second) if second else None)
        )
        y += step
    if second:
        parts.append(line(across.at(1), 22, across.at(1), y, "budget"))
        parts.append(text(0, y + 14, "Bar and first number: unmerged. Tick and second: merged.", class_="tick"))
        y += 18
    return svg(width, y + 4, "".join(parts), title)


def _bar(
    result: MethodResult,
    across: Axis,
    y: float,
    value: float,
    to_text: Callable[[float | None], str],
    second: float | None,
) -> str:
    end = across.at(value)
    numbers = to_text(value) if second is None else f"{to_text(value)} / {to_text(second)}"
    class_ = "bar hollow" if result.style.hollow else "bar"
    bar = tag("rect", x=across.start, y=y, width=max(end - across.start, 1.0), height=13, rx=2, class_=class_)
    right = max(end, across.at(second)) if second is not None else end
    if second is not None:
        bar += line(across.at(second), y - 2, across.at(second), y + 15, "tickmark")
    name = text(across.start - 8, y + 10.5, fit(result.label, 11.5, across.start - 10), "end", "row")
    return (
        name
        + group(result.style, bar, f"{result.row['method']}: {numbers}")
        + text(right + 6, y + 10.5, numbers, class_="value")
    )
