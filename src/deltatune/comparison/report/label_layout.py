"""Where labels go so that they cover nothing: each takes the best free place near its point, with a leader when far.

A small search, as in Christensen, Marks and Shieber 1995: candidate places around each point, a cost for what a place
would cover, greedy at first, then a few rounds in which each label may move while the others stand.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Box:
    """A rectangle, y growing downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: "Box", gap: float = 0.0) -> float:
        """Shared area, with `gap` pixels of air around this box."""
        wide = min(self.right, other.right) - max(self.left, other.left) + 2 * gap
        high = min(self.bottom, other.bottom) - max(self.top, other.top) + 2 * gap
        return wide * high if wide > 0 and high > 0 else 0.0

    def holds(self, other: "Box") -> bool:
        """Whether the other lies inside."""
        return (
            self.left <= other.left
            and self.top <= other.top
            and self.right >= other.right
            and self.bottom >= other.bottom
        )


@dataclass(frozen=True)
class Point:
    """A mark that wants a label of `width` × `height` pixels."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Place:
    """Where a label stands and the end of its leader there."""

    box: Box
    end: tuple[float, float]
    distance: float
    """From the mark; a leader is drawn where this is more than NEAR."""


NEAR = 16.0
"""Up to this distance a label is seen to belong to its mark without a leader."""


def place(points: Sequence[Point], obstacles: Sequence[tuple[Box, float]], bounds: Box) -> list[Place]:
    """One place per point. obstacles: what to keep off, each with a weight; every point's own mark among them."""
    options = [_best_candidates(point, obstacles, bounds) for point in points]
    taken: list[Place | None] = [None] * len(points)
    # The most crowded first: it has the least choice.
    order = sorted(range(len(points)), key=lambda i: -sum(_near(points[i], other) for other in points))
    for _ in range(5):
        before = list(taken)
        for i in order:
            others = [(points[j], spot) for j, spot in enumerate(taken) if spot is not None and j != i]
            costs = [cost + _mutual_cost(points[i], option, others) for cost, option in options[i]]
            taken[i] = options[i][costs.index(min(costs))][1]
        if taken == before:
            break
    return [spot for spot in taken if spot is not None]


def _near(one: Point, other: Point) -> bool:
    return abs(one.x - other.x) < 60 and abs(one.y - other.y) < 40


def _candidates(point: Point, bounds: Box) -> Iterator[Place]:
    for distance in (9.0, 13.0, 18.0, 25.0, 34.0, 46.0, 60.0, 76.0, 94.0, 115.0, 140.0, 170.0):
        for step in range(24):
            angle = step * math.pi / 12
            x, y = point.x + distance * math.cos(angle), point.y + distance * math.sin(angle)
            side = round(math.cos(angle) * 1.4)  # -1 stands left of the end, 0 centred on it, 1 right of it
            left = x - point.width * (1 - side) / 2
            top = y - point.height / 2 if side else y - point.height * (math.sin(angle) < 0)
            box = Box(left, top, left + point.width, top + point.height)
            if bounds.holds(box):
                yield Place(box, (x, y), distance)
    # Somewhere must be allowed, even in a chart too small for its words.
    left = min(max(point.x + 9, bounds.left), bounds.right - point.width)
    yield Place(
        Box(left, point.y - point.height / 2, left + point.width, point.y + point.height / 2), (left, point.y), 400
    )


def _best_candidates(
    point: Point, obstacles: Sequence[tuple[Box, float]], bounds: Box, keep: int = 60
) -> list[tuple[float, Place]]:
    """The cheapest places with their costs, as far as the other labels do not matter."""
    near = [(_fixed_cost(point, option, obstacles), i, option) for i, option in enumerate(_candidates(point, bounds))]
    return [(cost, option) for cost, _, option in sorted(near)[:keep]]


def _fixed_cost(point: Point, option: Place, obstacles: Sequence[tuple[Box, float]]) -> float:
    covered = sum(weight * option.box.overlap(box, gap=1.5) for box, weight in obstacles)
    crossed = 0.0
    if option.distance > NEAR:
        crossed = sum(weight * 5 for box, weight in obstacles if _touches(point, option, box))
    # Straight right or left reads best; a leader costs a little in itself.
    tilt = abs(option.end[1] - point.y) / option.distance
    return covered + crossed + option.distance * 0.6 + tilt * 4 + (8 if option.distance > NEAR else 0)


def _mutual_cost(point: Point, option: Place, others: Sequence[tuple[Point, Place]]) -> float:
    cost = 0.0
    for other, spot in others:
        cost += 40 * option.box.overlap(spot.box, gap=2)
        if option.distance > NEAR and _touches(point, option, spot.box):
            cost += 300
        if spot.distance > NEAR and _touches(other, spot, option.box):
            cost += 300
        if min(option.distance, spot.distance) > NEAR and _cross(
            (point.x, point.y), option.end, (other.x, other.y), spot.end
        ):
            cost += 300
    return cost


def _touches(point: Point, option: Place, box: Box) -> bool:
    """Whether the leader runs through a box, away from its own mark."""
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


def spread(wanted: Sequence[float], gap: float, low: float = -math.inf, high: float = math.inf) -> list[float]:
    """Positions at least `gap` apart, near to the wanted (ascending) ones, inside [low, high] where they fit.

    Runs of neighbours that would collide are centred on their mean.
    """
    runs: list[list[float]] = []
    for value in wanted:
        runs.append([value])
        while len(runs) > 1 and _start(runs[-1], gap) - _start(runs[-2], gap) < gap * len(runs[-2]):
            last = runs.pop()
            runs[-1].extend(last)
    places = [_start(run, gap) + gap * i for run in runs for i in range(len(run))]
    for i in reversed(range(len(places))):
        places[i] = min(places[i], high if i == len(places) - 1 else places[i + 1] - gap)
    for i in range(len(places)):
        places[i] = max(places[i], low if i == 0 else places[i - 1] + gap)
    return places


def _start(run: list[float], gap: float) -> float:
    return sum(run) / len(run) - gap * (len(run) - 1) / 2
