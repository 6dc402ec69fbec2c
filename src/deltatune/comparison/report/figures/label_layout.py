"""Label placement: each label takes the cheapest position near its point, with a leader line if it is far away.

The search follows Christensen, Marks and Shieber 1995: candidate positions around each point, a cost for what a label
would cover, a greedy start, then a few rounds in which one label moves while the others stay.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Box:
    """A rectangle; y points down."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: "Box", gap: float = 0.0) -> float:
        """Shared area, with a margin of `gap` pixels around this box."""
        wide = min(self.right, other.right) - max(self.left, other.left) + 2 * gap
        high = min(self.bottom, other.bottom) - max(self.top, other.top) + 2 * gap
        return wide * high if wide > 0 and high > 0 else 0.0

    def contains(self, other: "Box") -> bool:
        """Whether the other box lies inside this one."""
        return (
            self.left <= other.left
            and self.top <= other.top
            and self.right >= other.right
            and self.bottom >= other.bottom
        )


@dataclass(frozen=True)
class LabelledPoint:
    """A marker whose label takes `width` × `height` pixels."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Placement:
    """The box of a label and the end of its leader line."""

    box: Box
    end: tuple[float, float]
    distance: float
    """From the marker; beyond NO_LEADER a leader line is drawn."""


NO_LEADER = 16.0
"""Pixels up to which a label clearly belongs to its marker without a leader line."""


def place_labels(
    points: Sequence[LabelledPoint], obstacles: Sequence[tuple[Box, float]], bounds: Box
) -> list[Placement]:
    """One placement per point. obstacles: boxes to avoid with their weights, the markers included."""
    options = [_best_candidates(point, obstacles, bounds) for point in points]
    placed: list[Placement | None] = [None] * len(points)
    # The most crowded point comes first: it has the fewest free positions.
    order = sorted(range(len(points)), key=lambda i: -sum(_near(points[i], other) for other in points))
    for _ in range(5):
        before = list(placed)
        for i in order:
            others = [(points[j], other) for j, other in enumerate(placed) if other is not None and j != i]
            costs = [cost + _mutual_cost(points[i], option, others) for cost, option in options[i]]
            placed[i] = options[i][costs.index(min(costs))][1]
        if placed == before:
            break
    return [placement for placement in placed if placement is not None]


def _near(a: LabelledPoint, b: LabelledPoint) -> bool:
    return abs(a.x - b.x) < 60 and abs(a.y - b.y) < 40


def _candidates(point: LabelledPoint, bounds: Box) -> Iterator[Placement]:
    for distance in (9.0, 13.0, 18.0, 25.0, 34.0, 46.0, 60.0, 76.0, 94.0, 115.0, 140.0, 170.0):
        for step in range(24):
            angle = step * math.pi / 12
            x, y = point.x + distance * math.cos(angle), point.y + distance * math.sin(angle)
            side = round(math.cos(angle) * 1.4)  # -1: left of the end, 0: centred on it, 1: right of it
            left = x - point.width * (1 - side) / 2
            top = y - point.height / 2 if side else y - point.height * (math.sin(angle) < 0)
            box = Box(left, top, left + point.width, top + point.height)
            if bounds.contains(box):
                yield Placement(box, (x, y), distance)
    # One placement is always allowed, even in a chart too small for its labels.
    left = min(max(point.x + 9, bounds.left), bounds.right - point.width)
    yield Placement(
        Box(left, point.y - point.height / 2, left + point.width, point.y + point.height / 2), (left, point.y), 400
    )


def _best_candidates(
    point: LabelledPoint, obstacles: Sequence[tuple[Box, float]], bounds: Box, keep: int = 60
) -> list[tuple[float, Placement]]:
    """The cheapest placements with their costs, without regard to the other labels."""
    candidates = [
        (_fixed_cost(point, option, obstacles), i, option) for i, option in enumerate(_candidates(point, bounds))
    ]
    return [(cost, option) for cost, _, option in sorted(candidates)[:keep]]


def _fixed_cost(point: LabelledPoint, option: Placement, obstacles: Sequence[tuple[Box, float]]) -> float:
    covered = sum(weight * option.box.overlap(box, gap=1.5) for box, weight in obstacles)
    crossed = 0.0
    if option.distance > NO_LEADER:
        crossed = sum(weight * 5 for box, weight in obstacles if _touches(point, option, box))
    # Straight right or left is easiest to read; a leader line has a cost of its own.
    tilt = abs(option.end[1] - point.y) / option.distance
    return covered + crossed + option.distance * 0.6 + tilt * 4 + (8 if option.distance > NO_LEADER else 0)


def _mutual_cost(point: LabelledPoint, option: Placement, others: Sequence[tuple[LabelledPoint, Placement]]) -> float:
    cost = 0.0
    for other, placement in others:
        cost += 40 * option.box.overlap(placement.box, gap=2)
        if option.distance > NO_LEADER and _touches(point, option, placement.box):
            cost += 300
        if placement.distance > NO_LEADER and _touches(other, placement, option.box):
            cost += 300
        if min(option.distance, placement.distance) > NO_LEADER and _cross(
            (point.x, point.y), option.end, (other.x, other.y), placement.end
        ):
            cost += 300
    return cost


def _touches(point: LabelledPoint, option: Placement, box: Box) -> bool:
    """Whether the leader line crosses a box, away from its own marker."""
    left, right = sorted((point.x, option.end[0]))
    top, bottom = sorted((point.y, option.end[1]))
    if left > box.right or right < box.left or top > box.bottom or bottom < box.top:
        return False
    for step in range(3, 20):
        x = point.x + (option.end[0] - point.x) * step / 20
        y = point.y + (option.end[1] - point.y) * step / 20
        if math.hypot(x - point.x, y - point.y) > 8 and box.left <= x <= box.right and box.top <= y <= box.bottom:
            return True
    return False


def _cross(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float], d: tuple[float, float]) -> bool:
    def turn(p: tuple[float, float], q: tuple[float, float], r: tuple[float, float]) -> bool:
        return (q[0] - p[0]) * (r[1] - p[1]) > (q[1] - p[1]) * (r[0] - p[0])

    return turn(a, b, c) != turn(a, b, d) and turn(c, d, a) != turn(c, d, b)


def spread(positions: Sequence[float], gap: float, low: float = -math.inf, high: float = math.inf) -> list[float]:
    """Move ascending positions at least `gap` apart, and into [low, high] if they fit.

    Runs of neighbours that would collide are centred on their mean.
    """
    runs: list[list[float]] = []
    for value in positions:
        runs.append([value])
        while len(runs) > 1 and _start(runs[-1], gap) - _start(runs[-2], gap) < gap * len(runs[-2]):
            last = runs.pop()
            runs[-1].extend(last)
    spread_out = [_start(run, gap) + gap * i for run in runs for i in range(len(run))]
    for i in reversed(range(len(spread_out))):
        spread_out[i] = min(spread_out[i], high if i == len(spread_out) - 1 else spread_out[i + 1] - gap)
    for i in range(len(spread_out)):
        spread_out[i] = max(spread_out[i], low if i == 0 else spread_out[i - 1] + gap)
    return spread_out


def _start(run: list[float], gap: float) -> float:
    return sum(run) / len(run) - gap * (len(run) - 1) / 2
