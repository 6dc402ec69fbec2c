"""SVG elements, axes and markers. Colours are CSS variables, so the theme of the page applies to the charts too."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from deltatune.comparison.report.number_format import clip, html

SHAPES = ("circle", "square", "diamond", "triangle", "down")
COLOURS = 10
"""Number of colour classes s0..s9 in theme.css; shapes distinguish methods for colour-blind readers."""


@dataclass(frozen=True)
class MarkerStyle:
    """Colour and shape of one method, the same in every figure."""

    color_class: str
    """CSS class of the colour: "s0" to "s9" for methods, "ref" for references."""
    shape: str
    hollow: bool = False


def marker_styles(references: Sequence[bool]) -> list[MarkerStyle]:
    """One style per method in the order of the table: coloured and filled, or grey and hollow for references."""
    styles, seen = [], {True: 0, False: 0}
    for reference in references:
        i = seen[reference]
        seen[reference] += 1
        shape = SHAPES[(i if reference else i + i // COLOURS) % len(SHAPES)]
        styles.append(MarkerStyle("ref", shape, hollow=True) if reference else MarkerStyle(f"s{i % COLOURS}", shape))
    return styles


@dataclass(frozen=True)
class Axis:
    """A scale from values to pixels."""

    low: float
    high: float
    start: float
    """Pixel of `low`."""
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """Pixel of a value."""
        low, high, value = (
            (math.log10(v) for v in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        )
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """About `count` round values inside the axis."""
        return _log_ticks(self.low, self.high, count) if self.log else _linear_ticks(self.low, self.high, count)


def linear(values: Iterable[float], start: float, end: float, pad: float = 0.06, floor: float | None = None) -> Axis:
    """A linear axis over all values with some margin, never below `floor`."""
    numbers = list(values) or [0.0, 1.0]
    low, high = min(numbers), max(numbers)
    margin = (high - low) * pad or abs(high) * 0.1 or 0.1
    return Axis(max(low - margin, floor) if floor is not None else low - margin, high + margin, start, end)


def logarithmic(values: Iterable[float], start: float, end: float, pad: float = 0.08) -> Axis:
    """A log axis over the positive values, at least a decade wide."""
    exponents = [math.log10(value) for value in values if value > 0] or [0.0, 1.0]
    low, high = min(exponents), max(exponents)
    margin = max((high - low) * pad, (1.0 - (high - low)) / 2, 0.05)
    return Axis(10 ** (low - margin), 10 ** (high + margin), start, end, log=True)


def tag(name: str, content: str = "", **attributes: object) -> str:
    """An element. `class_` becomes class, `stroke_width` stroke-width; values are escaped, content is not."""
    pairs = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html(_short(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{pairs}>{content}</{name}>" if content else f"<{name}{pairs}/>"


def svg(width: float, height: float, content: str, label: str, class_: str = "") -> str:
    """An image that scales with its box; `label` is for screen readers."""
    box = f"0 0 {_short(width)} {_short(height)}"
    return tag("svg", content, viewBox=box, width=width, height=height, role="img", aria_label=label, class_=class_)


def standalone(image: str) -> str:
    """An image as a file of its own."""
    return image.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n"


def text(x: float, y: float, content: str, anchor: str = "start", class_: str = "") -> str:
    """Text at a point, escaped."""
    text_anchor = None if anchor == "start" else anchor
    return tag("text", html(content), x=x, y=y, text_anchor=text_anchor, class_=class_ or None)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> str:
    """A straight line."""
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def path(points: Sequence[tuple[float, float]], class_: str = "line") -> str:
    """A line through points."""
    if not points:
        return ""
    return tag("path", d="M" + "L".join(f"{_short(x)} {_short(y)}" for x, y in points), class_=class_)


def mark(style: MarkerStyle, x: float, y: float, r: float = 5.0) -> str:
    """The marker of a method, centred."""
    class_ = "mark hollow" if style.hollow else "mark"
    if style.shape == "circle":
        return tag("circle", cx=x, cy=y, r=r, class_=class_)
    if style.shape == "square":
        side = r * 0.88
        return tag("rect", x=x - side, y=y - side, width=2 * side, height=2 * side, class_=class_)
    corners = {
        "diamond": [(0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)],
        "triangle": [(0, -1.2), (1.15, 0.85), (-1.15, 0.85)],
        "down": [(0, 1.2), (1.15, -0.85), (-1.15, -0.85)],
    }[style.shape]
    return tag(
        "polygon", points=" ".join(f"{_short(x + r * a)},{_short(y + r * b)}" for a, b in corners), class_=class_
    )


def group(style: MarkerStyle, content: str, title: str = "") -> str:
    """Elements of one method in its colour, with a tooltip."""
    return tag("g", (tag("title", html(title)) if title else "") + content, class_=style.color_class)


def text_width(content: str, size: float) -> float:
    """Estimate the width of a line of bold sans-serif text in pixels, in DejaVu, the widest of the usual fonts."""
    narrow, wide = set("iljtfrI.,:;'()[]| "), set("mwMWGOQ@%…×")
    widths = (
        0.42 if letter in narrow else 1.0 if letter in wide else 0.79 if letter.isupper() else 0.69
        for letter in content
    )
    return size * sum(widths)


def fit(content: str, size: float, width: float) -> str:
    """Clip a text to `width` pixels."""
    length = len(content)
    while length > 4 and text_width(clip(content, length), size) > width:
        length -= 1
    return clip(content, length)


def left_axis(axis: Axis, left: float, right: float, names: dict[float, str]) -> str:
    """Horizontal grid lines with values on the left."""
    parts = []
    for value, name in names.items():
        y = axis.at(value)
        parts.append(line(left, y, right, y, "grid") + text(left - 6, y + 3.5, name, "end", "tick"))
    return "".join(parts)


def bottom_axis(axis: Axis, bottom: float, names: dict[float, str]) -> str:
    """The base line with values below it."""
    parts = [line(axis.start, bottom, axis.end, bottom, "ground")]
    for value, name in names.items():
        x = axis.at(value)
        parts.append(line(x, bottom, x, bottom + 4, "ground") + text(x, bottom + 16, name, "middle", "tick"))
    return "".join(parts)


def _short(value: object) -> object:
    """Round pixels to a tenth, to keep the page small."""
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else value


def _linear_ticks(low: float, high: float, count: int) -> list[float]:
    raw = (high - low) / max(count, 1)
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(scale * factor for factor in (1, 2, 2.5, 5, 10) if scale * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    inside = [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]
    # A scale needs at least two values.
    return inside if len(inside) > 1 else _linear_ticks(low, high, count + 1)


def _log_ticks(low: float, high: float, count: int) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5)):
        inside = [factor * 10.0**i for i in decades for factor in factors if low <= factor * 10.0**i <= high]
        if len(inside) >= 3:
            break
    while len(inside) > count + 2:
        inside = inside[::2]
    return inside
