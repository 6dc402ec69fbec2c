"""The smaller figures: learning curves, learning rates, costs. Each function takes the methods and returns SVG."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from deltatune.comparison.report import number_format as formats
from deltatune.comparison.report.entries import Entry
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
    tag,
    text,
)


def learning_curves(methods: Sequence[Entry], metric: str) -> list[str]:
    """One small picture a method: smoothed training loss of every seed, and the validation score where there is one."""
    drawn = [entry for entry in methods if entry.row.get("curves")]
    losses = {entry.label: [smooth(curve.get("loss") or []) for curve in entry.row["curves"]] for entry in drawn}
    scores = {entry.label: [_pairs(curve.get("validation") or []) for curve in entry.row["curves"]] for entry in drawn}
    if not any(points for each in losses.values() for points in each):
        return []
    width, floor = 210.0, 112.0
    lower = any(points for each in scores.values() for points in each)
    height = 242.0 if lower else 148.0
    steps = _values([*losses.values(), *scores.values()], 0)
    across = Axis(0.0, max(steps) or 1.0, 34.0, width - 8)
    loss_axis = linear(_values(losses.values(), 1), floor, 38, floor=0.0)
    score_axis = linear(_values(scores.values(), 1), height - 36, floor + 26)
    pictures = []
    for entry in drawn:
        parts = [_caption(entry, width), _panel(loss_axis, across, 3)]
        parts += [_behind(losses, entry, across, loss_axis), _curves(entry, losses[entry.label], across, loss_axis)]
        parts.append(text(across.start, 31, "training loss", class_="note"))
        if lower:
            parts += [_panel(score_axis, across, 3), _behind(scores, entry, across, score_axis)]
            parts += [_curves(entry, scores[entry.label], across, score_axis, dots=True)]
            parts.append(text(across.start, floor + 19, f"validation {metric}", class_="note"))
        parts.append(bottom_axis(across, height - 36, {value: f"{value:g}" for value in across.ticks(3)}))
        parts.append(text(width - 8, height - 5, "training step", "end", "axis"))
        pictures.append(svg(width, height, "".join(parts), f"Learning curves of {entry.label}"))
    return pictures


def rate_sensitivity(methods: Sequence[Entry], metric: str) -> list[str]:
    """One small picture a method: validation score of every learning rate tried, the chosen one ringed."""
    tried = {entry.label: [sorted(_pairs(entry.row.get("search") or []))] for entry in methods}
    tried = {label: [[(rate, score) for rate, score in found[0] if rate > 0]] for label, found in tried.items()}
    drawn = [entry for entry in methods if tried[entry.label][0]]
    if not drawn:
        return []
    width, height = 210.0, 176.0
    across = logarithmic(_values(tried.values(), 0), 38.0, width - 10)
    up = linear(_values(tried.values(), 1), height - 36, 56, pad=0.12)
    pictures = []
    for entry in drawn:
        points = tried[entry.label][0]
        marks = path([(across.at(rate), up.at(score)) for rate, score in points])
        for rate, score in points:
            dot = tag("circle", cx=across.at(rate), cy=up.at(score), r=2.8, class_="dot")
            marks += tag("g", tag("title", f"{formats.rate(rate)}: {formats.score(score)}") + dot)
        parts = [_caption(entry, width), _panel(up, across, 3), _behind(tried, entry, across, up)]
        parts.append(text(across.start, 31, f"validation {metric}", class_="note"))
        parts += [group(entry.look, marks + _chosen(entry, points, across, up, width))]
        parts.append(bottom_axis(across, height - 36, {value: formats.rate(value) for value in across.ticks(3)}))
        parts.append(text(width - 8, height - 5, "learning rate", "end", "axis"))
        pictures.append(svg(width, height, "".join(parts), f"Validation {metric} by learning rate, {entry.label}"))
    return pictures


def costs(methods: Sequence[Entry]) -> list[str]:
    """Bars of training time, peak memory, latency and writing, one picture each; what was not measured is left out."""
    latency = _bars(methods, "Inference time, bare model = 1", "latency_ratio", formats.ratio, "latency_ratio_merged")
    pictures = [
        _bars(methods, "Training time, one seed", "train_seconds", formats.seconds),
        _bars(methods, "Peak memory in training", "peak_memory_bytes", formats.size),
        latency,
        _bars(methods, "Time to write, bare model = 1", "writing_ratio", formats.ratio),
    ]
    return [picture for picture in pictures if picture]


def smooth(points: Sequence[Sequence[float | None]], keep: int = 80) -> list[tuple[float, float]]:
    """A moving mean over about a twelfth of the curve, thinned to `keep` points so that the page stays small."""
    known = _pairs(points)
    reach = max(1, len(known) // 24)
    stride = max(1, len(known) // keep)
    found = []
    for i in range(0, len(known), stride):
        near = [value for _, value in known[max(0, i - reach) : i + reach + 1]]
        found.append((known[i][0], sum(near) / len(near)))
    return found


def _pairs(points: Sequence[Sequence[float | None]]) -> list[tuple[float, float]]:
    named = [{"x": x, "y": y} for x, y in points]
    found = [(formats.number(point, "x"), formats.number(point, "y")) for point in named]
    return [(x, y) for x, y in found if x is not None and y is not None]


def _values(all_curves: Any, which: int) -> list[float]:
    return [point[which] for curves in all_curves for curve in curves for point in curve]


def _caption(entry: Entry, width: float) -> str:
    name = fit(entry.label, 12.5, width - 26)
    return group(entry.look, mark(entry.look, 7, 9, 4.2)) + text(17, 13, name, class_="name")


def _panel(up: Axis, across: Axis, about: int) -> str:
    return left_axis(up, across.start, across.end, {value: f"{value:g}" for value in up.ticks(about)})


def _behind(curves: Mapping[str, list[list[tuple[float, float]]]], entry: Entry, across: Axis, up: Axis) -> str:
    """The other methods, faint: what this one is to be compared with."""
    others = [each[0] for label, each in curves.items() if label != entry.label and each]
    return "".join(
        path([(across.at(x), up.at(y)) for x, y in points[:: 1 + len(points) // 40]], "behind") for points in others
    )


def _curves(
    entry: Entry, curves: Sequence[Sequence[tuple[float, float]]], across: Axis, up: Axis, dots: bool = False
) -> str:
    lines = "".join(path([(across.at(x), up.at(y)) for x, y in points]) for points in curves)
    ends = [point for points in curves for point in points] if dots else []
    return group(
        entry.look, lines + "".join(tag("circle", cx=across.at(x), cy=up.at(y), r=2, class_="dot") for x, y in ends)
    )


def _chosen(entry: Entry, points: Sequence[tuple[float, float]], across: Axis, up: Axis, width: float) -> str:
    chosen = entry.number("learning_rate")
    for rate, score in points:
        if chosen is not None and abs(rate - chosen) <= 1e-6 * chosen:
            x, y = across.at(rate), up.at(score)
            anchor = "middle" if 60 < x < width - 30 else "start" if x <= 60 else "end"
            ring = tag("circle", cx=x, cy=y, r=6, class_="ring")
            return ring + text(x, y - 10, formats.rate(rate), anchor, "label")
    return ""


def _bars(
    methods: Sequence[Entry],
    title: str,
    key: str,
    write: Callable[[float | None], str],
    second: str | None = None,
) -> str:
    known = [entry for entry in methods if entry.number(key) is not None]
    if not known:
        return ""
    width, left, step = 340.0, 128.0, 21.0
    most = max(max(entry.number(key) or 0, entry.number(second) or 0 if second else 0) for entry in known)
    across = Axis(0.0, most or 1.0, left, width - (96 if second else 66))
    parts, y = [text(0, 13, title, class_="name")], 26.0
    for before, entry in zip([known[0], *known], known, strict=False):
        y += 9 if entry.reference and not before.reference else 0
        parts.append(_bar(entry, across, y, entry.number(key) or 0, write, entry.number(second) if second else None))
        y += step
    if second:
        parts.append(line(across.at(1), 22, across.at(1), y, "budget"))
        parts.append(text(0, y + 14, "Bar and first number: live. Tick and second: merged.", class_="tick"))
        y += 18
    return svg(width, y + 4, "".join(parts), title)


def _bar(
    entry: Entry, across: Axis, y: float, value: float, write: Callable[[float | None], str], second: float | None
) -> str:
    end = across.at(value)
    words = write(value) if second is None else f"{write(value)} / {write(second)}"
    class_ = "bar hollow" if entry.look.hollow else "bar"
    bar = tag("rect", x=across.start, y=y, width=max(end - across.start, 1.0), height=13, rx=2, class_=class_)
    far = max(end, across.at(second)) if second is not None else end
    if second is not None:
        bar += line(across.at(second), y - 2, across.at(second), y + 15, "tickmark")
    name = text(across.start - 8, y + 10.5, fit(entry.label, 11.5, across.start - 10), "end", "row")
    return (
        name
        + group(entry.look, bar, f"{entry.row['method']}: {words}")
        + text(far + 6, y + 10.5, words, class_="value")
    )
