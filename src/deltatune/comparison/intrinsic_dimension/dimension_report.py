"""Report of a search for the intrinsic dimension: plain data, a sentence, and a figure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from deltatune.comparison.intrinsic_dimension.dimension_config import DimensionConfig, DimensionPoint
from deltatune.comparison.intrinsic_dimension.dimension_search import DimensionResult
from deltatune.comparison.plans.make_plan import DEFAULT_METHODS
from deltatune.comparison.plans.plan import Plan
from deltatune.comparison.report import number_format as formats
from deltatune.comparison.report.figures.svg import (
    MarkerStyle,
    bottom_axis,
    group,
    left_axis,
    line,
    linear,
    logarithmic,
    mark,
    path,
    standalone,
    svg,
    tag,
    text,
)
from deltatune.comparison.results.baseline import majority
from deltatune.comparison.results.recommend import percent
from deltatune.core.budget import fit_budget
from deltatune.core.errors import DeltatuneError
from deltatune.core.method import Method
from deltatune.core.registry import parse
from deltatune.core.sites.site import Sites
from deltatune.models.versions import versions


def summarise_search(plan: Plan, config: DimensionConfig, result: DimensionResult, elapsed: float) -> dict[str, Any]:
    """Everything about a search as plain data."""
    sites, task = plan.session.host.sites, plan.session.task
    summary: dict[str, Any] = {
        "schema": 1,
        "name": plan.name,
        "model": plan.session.model,
        "data": {
            "name": plan.data.name,
            "origin": plan.data.origin,
            "rows": {n: len(r) for n, r in plan.splits.items()},
        },
        "metric": task.metric,
        "question": dataclasses.asdict(config),
        "base_params": sites.base_params,
        "head_params": plan.head_params,
        "majority": majority(plan),
        "target": result.target,
        "dimension": result.dimension,
        "below": result.below,
        "refusal": result.refusal,
        "full": _entry(result.full, result),
        "points": [_entry(point, result) for point in result.points],
        "methods": equivalents(sites, result.dimension) if result.dimension else [],
        "seeds": list(plan.seeds),
        "settings": dataclasses.asdict(plan.settings) | {"max_length": task.to_json().get("max_length")},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "elapsed_seconds": elapsed,
        "versions": versions(),
    }
    return summary | {"sentence": sentence(summary)}


def _entry(point: DimensionPoint, result: DimensionResult) -> dict[str, Any]:
    reaches = None if point.dimension is None or result.refusal else point.score >= result.target
    return dataclasses.asdict(point) | {"reaches": reaches}


def equivalents(
    sites: Sites, dimension: int, methods: Sequence[str | Method] = DEFAULT_METHODS
) -> list[dict[str, Any]]:
    """Each method at the smallest size that trains at least `dimension` parameters; the fewest parameters first."""
    rows = []
    for name in methods:
        method = parse(name)
        if method.size is None:
            continue
        try:
            smallest = _smallest(method, sites, dimension)
        except DeltatuneError:  # the model has no such sites
            continue
        params = smallest.count(sites)
        if params >= dimension:
            rows.append({"method": repr(smallest), "params": params, "times": params / dimension})
    return sorted(rows, key=lambda entry: entry["params"])


def _smallest(method: Method, sites: Sites, dimension: int) -> Method:
    if method.sized(1).count(sites) >= dimension:
        return method.sized(1)
    below = fit_budget(method, sites, dimension - 1)  # the largest size that is too small
    return method.sized(min((below.size or 0) + 1, method.limit(sites)))


def sentence(result: Mapping[str, Any]) -> str:
    """The result in a sentence, with advice."""
    if result.get("refusal"):
        return str(result["refusal"])
    question, metric = result["question"], result["metric"]
    share = f"{100 * question['fraction']:g} %"
    what = f"the {metric} of full fine-tuning" if question["of"] == "full" else f"full fine-tuning's gain in {metric}"
    goal = f"{share} of {what} ({result['target']:.3f})"
    dimension = result["dimension"]
    if dimension is None:
        largest = max(point["dimension"] for point in result["points"])
        text = f"No dimension up to {largest:,} reaches {goal}; raise --largest or train longer."
    elif dimension == 0:
        text = (
            f"The head alone reaches {goal}: no weight of the model has to change. Use Probe(), or set a higher "
            "target: --fraction 0.99, or --of gain for a share of what full fine-tuning adds."
        )
    else:
        of = percent(dimension / result["base_params"])
        bound = f", {result['below']:,} do not" if result["below"] else ""
        text = f"{dimension:,} parameters ({of} of the model's) reach {goal}{bound}."
        if result["methods"]:
            first = result["methods"][0]
            text += f" The smallest common method with at least as many is {first['method']}, with {first['params']:,}."
    return text + _warning(result)


def _warning(result: Mapping[str, Any]) -> str:
    """A warning if full fine-tuning is no better than the majority baseline."""
    majority_score = (result["majority"] or {}).get("score")
    if majority_score is None or result["full"]["test"] > majority_score:
        return ""
    return (
        f" Warning: full fine-tuning scores {result['full']['test']:.3f} on the test rows, no better than always "
        f"answering the most frequent label ({majority_score:.3f}), so a share of it means nothing."
    )


WIDTH, HEIGHT = 640.0, 380.0
STRIP = 54.0
"""Width of the strip for the head alone: a log axis has no 0."""
STYLE = """
svg { font: 12px system-ui, sans-serif; background: #fdfdfc; }
text { fill: #5b6875; } .label { fill: #16202a; font-weight: 600; }
.grid, .ground { stroke: #dde2e6; } .front { stroke: #0072b2; stroke-width: 1.5; fill: none; }
.s0 { fill: #0072b2; } .ref { stroke: #5f6a75; fill: #fdfdfc; } .mark.hollow { stroke-width: 1.5; }
.goal { stroke: #a33a1c; stroke-dasharray: 5 4; } .full { stroke: #5f6a75; }
"""
"""The figure is a file of its own, without the report's style sheet."""


def draw_curve(result: Mapping[str, Any]) -> str:
    """An SVG of the validation score by dimension (log scale), with full fine-tuning, the target and the result.

    `result` is what `summarise_search` returns.
    """
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
    if result.get("refusal"):
        lines = lines[:1]
        parts.append(
            text(right, top - 8, "No conclusion: full fine-tuning is not above the head alone", "end", "label")
        )
    for value, name, kind in lines:
        parts.append(line(left, up.at(value), right, up.at(value), kind) + text(right + 6, up.at(value) + 4, name))
    spots = [(across.at(point["dimension"]), up.at(point["score"]), point) for point in points]
    parts.append(path([(x, y) for x, y, _ in spots], "front"))
    spots += [(left + STRIP * 0.45, up.at(point["score"]), point) for point in head]
    for x, y, point in spots:
        style = MarkerStyle("s0", "circle") if point["reaches"] else MarkerStyle("ref", "circle", hollow=True)
        title = f"{point['method']}: {point['score']:.3f} at rate {formats.rate(point['rate'])}"
        parts.append(group(style, mark(style, x, y), title))
        if point["dimension"] == result["dimension"]:
            parts.append(text(x, y - 12, f"{point['dimension']:,}", "middle", "label"))
    label = f"Validation {result['metric']} against the dimension of the subspace"
    return standalone(svg(WIDTH, HEIGHT, "".join(parts), label))
