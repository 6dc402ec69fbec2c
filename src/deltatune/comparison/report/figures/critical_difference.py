"""The critical-difference figure: average ranks, and bars over methods that a post-hoc test does not tell apart.

Demšar 2006, Statistical comparisons of classifiers over multiple data sets, JMLR 7, figure 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from deltatune.comparison.report.figures.svg import MarkerStyle, fit, group, line, mark, path, svg, text

ROW = 18.0
"""Pixels between two labels."""


@dataclass(frozen=True)
class RankedMethod:
    """A method with its average rank, 1 the best."""

    name: str
    label: str
    rank: float
    style: MarkerStyle


def critical_difference(
    methods: Sequence[RankedMethod], difference: float | None, cliques: Sequence[Sequence[str]]
) -> list[str]:
    """The figure, wide as in the paper, and narrow for a phone: a row for each method. [] for fewer than two."""
    ranked = sorted(methods, key=lambda method: (method.rank, method.label))
    if len(ranked) < 2:
        return []
    spans = _spans(ranked, cliques)
    return [_wide(ranked, difference, spans), _narrow(ranked, difference, spans)]


def _spans(ranked: Sequence[RankedMethod], cliques: Sequence[Sequence[str]]) -> list[tuple[float, float]]:
    """First and last rank of each clique of two methods or more; one within another is left out."""
    ranks = {method.name: method.rank for method in ranked}
    spans = set()
    for clique in cliques:
        values = [ranks[name] for name in clique if name in ranks]
        if len(values) > 1:
            spans.add((min(values), max(values)))
    return sorted(
        (low, high)
        for low, high in spans
        if not any(other != (low, high) and other[0] <= low and high <= other[1] for other in spans)
    )


def _wide(ranked: Sequence[RankedMethod], difference: float | None, spans: Sequence[tuple[float, float]]) -> str:
    width, left, right = 1080.0, 250.0, 830.0
    top = 62.0
    low, high = math.floor(ranked[0].rank), max(math.ceil(ranked[-1].rank), math.floor(ranked[0].rank) + 1)

    def at(rank: float) -> float:
        return left + (rank - low) / (high - low) * (right - left)

    parts = [line(left, top, right, top, "ground")]
    step = max(1, round((high - low) / 10))
    for rank in range(low, high + 1, step):
        parts.append(line(at(rank), top - 5, at(rank), top, "ground"))
        parts.append(text(at(rank), top - 9, str(rank), "middle", "tick"))
    if difference is not None and at(low + difference) <= width - 10:
        end = at(low + difference)
        parts += [line(left, 26, end, 26, "bracket"), line(left, 22, left, 30, "bracket")]
        parts += [line(end, 22, end, 30, "bracket")]
        parts.append(text(left, 15, f"critical difference {difference:.2f}", class_="tick"))
    bars = top + 10
    for i, (start, end) in enumerate(spans):
        parts.append(line(at(start) - 4, bars + i * 7, at(end) + 4, bars + i * 7, "clique"))
    first = bars + len(spans) * 7 + 12
    half = (len(ranked) + 1) // 2
    for i, method in enumerate(ranked):
        best_half = i < half
        row = i if best_half else len(ranked) - 1 - i
        y, x = first + row * ROW, at(method.rank)
        edge = left - 16 if best_half else right + 16
        name = (
            f"{fit(method.label, 12, 190)}  {method.rank:.2f}"
            if best_half
            else (f"{method.rank:.2f}  {fit(method.label, 12, 190)}")
        )
        parts.append(path([(x, top), (x, y), (edge, y)], "elbow"))
        parts.append(group(method.style, mark(method.style, x, top, 4), f"{method.name}: rank {method.rank:.2f}"))
        parts.append(text(edge - 6 if best_half else edge + 6, y + 4, name, "end" if best_half else "start"))
    return svg(width, first + half * ROW + 4, "".join(parts), "Average ranks with the critical difference", "wide")


def _narrow(ranked: Sequence[RankedMethod], difference: float | None, spans: Sequence[tuple[float, float]]) -> str:
    width, left, top = 352.0, 132.0, 40.0
    right = width - 16.0 - 8 * len(spans)
    low, high = math.floor(ranked[0].rank), max(math.ceil(ranked[-1].rank), math.floor(ranked[0].rank) + 1)

    def at(rank: float) -> float:
        return left + (rank - low) / (high - low) * (right - left)

    bottom = top + len(ranked) * ROW
    parts = []
    for rank in range(low, high + 1, max(1, round((high - low) / 4))):
        parts.append(line(at(rank), top - 4, at(rank), bottom, "grid"))
        parts.append(text(at(rank), top - 8, str(rank), "middle", "tick"))
    if difference is not None:
        parts.append(text(0, 12, f"average rank; critical difference {difference:.2f}", class_="tick"))
    for i, method in enumerate(ranked):
        y = top + (i + 0.5) * ROW
        parts.append(text(left - 10, y + 4, fit(method.label, 11.5, left - 12), "end", "row"))
        marker = mark(method.style, at(method.rank), y, 4.2)
        parts.append(group(method.style, marker, f"{method.name}: rank {method.rank:.2f}"))
    for i, (start, end) in enumerate(spans):
        rows = [j for j, method in enumerate(ranked) if start <= method.rank <= end]
        x = right + 14 + 8 * i
        parts.append(line(x, top + rows[0] * ROW + 3, x, top + (rows[-1] + 1) * ROW - 3, "clique"))
    return svg(width, bottom + 4, "".join(parts), "Average ranks with the critical difference", "narrow")
