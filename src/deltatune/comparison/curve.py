"""The figure of a search for the intrinsic dimension: score against dimension, as one SVG file."""

from collections.abc import Mapping
from typing import Any

from deltatune.comparison import formats
from deltatune.comparison.charts import (
    Look,
    bottom_axis,
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

WIDTH, HEIGHT = 640.0, 380.0
STRIP = 54.0
"""Width of the strip for the head alone: 0 has no place on a log axis."""
STYLE = """
svg { font: 12px system-ui, sans-serif; background: #fdfdfc; }
text { fill: #5b6875; } .label { fill: #16202a; font-weight: 600; }
.grid, .ground { stroke: #dde2e6; } .front { stroke: #0072b2; stroke-width: 1.5; fill: none; }
.s0 { fill: #0072b2; } .ref { stroke: #5f6a75; fill: #fdfdfc; } .mark.hollow { stroke-width: 1.5; }
.goal { stroke: #a33a1c; stroke-dasharray: 5 4; } .full { stroke: #5f6a75; }
"""
"""Colours of its own: the file stands alone, without the report's page."""


def curve(result: Mapping[str, Any]) -> str:
    """Validation score by dimension (log), with full fine-tuning, the target and the answer. `result`: an answer."""
    points = [point for point in result["points"] if point["dimension"]]
    head = [point for point in result["points"] if not point["dimension"]]
    left, right, top, bottom = 48.0, WIDTH - 96, 34.0, HEIGHT - 46
    start = left + STRIP
    across = logarithmic([point["dimension"] for point in points], start, right)
    scores = [point["score"] for point in result["points"]] + [result["full"]["score"], result["target"]]
    up = linear(scores, bottom, top)
    parts = [
        tag("style", STYLE),
        left_axis(up, left, right, {value: f"{value:g}" for value in up.ticks(6)}),
        bottom_axis(across, bottom, {value: formats.short_count(value) for value in across.ticks(6)}),
        text(left - 40, 16, f"validation {result['metric']}", class_="axis"),
        text(right, HEIGHT - 8, "dimension, log scale", "end", "axis"),
        text(left + STRIP * 0.45, bottom + 16, "0", "middle", "tick"),
        text(left + STRIP * 0.45, bottom + 29, "head only", "middle", "tick"),
    ]
    share = f"{100 * result['question']['fraction']:g} %"
    lines = [(result["full"]["score"], "full", "full"), (result["target"], share, "goal")]
    for value, name, kind in lines:
        parts.append(line(left, up.at(value), right, up.at(value), kind) + text(right + 6, up.at(value) + 4, name))
    spots = [(across.at(point["dimension"]), up.at(point["score"]), point) for point in points]
    parts.append(path([(x, y) for x, y, _ in spots], "front"))
    spots += [(left + STRIP * 0.45, up.at(point["score"]), point) for point in head]
    for x, y, point in spots:
        look = Look("s0", "circle") if point["reaches"] else Look("ref", "circle", hollow=True)
        title = f"{point['method']}: {point['score']:.3f} at rate {formats.rate(point['rate'])}"
        parts.append(group(look, mark(look, x, y), title))
        if point["dimension"] == result["dimension"]:
            parts.append(text(x, y - 12, f"{point['dimension']:,}", "middle", "label"))
    picture = svg(WIDTH, HEIGHT, "".join(parts), f"Validation {result['metric']} against the dimension of the subspace")
    return picture.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n"
