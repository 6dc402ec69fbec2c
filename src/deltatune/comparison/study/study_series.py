"""Series of a study: the scores of every method along one axis, with the other axes fixed, as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deltatune.comparison.study.set_averages import Comparison, entry_of

ORDERED = ("limit", "shots", "budget", "model")
"""Axes whose values have an order."""


def series(comparisons: Sequence[Comparison], methods: Sequence[str], varied: Sequence[str]) -> list[dict[str, Any]]:
    """[{"axis", "method", "metric", "at" (other axes), "points": [{"x", "value", "score", "ci"}]}], x ascending.

    x of `limit` is the number of rows that were trained on, of `shots` that of each class, of `budget` the number of
    parameters, of `model` that of the base. A series has at least two points.
    """
    found = []
    for axis in (axis for axis in ORDERED if axis in varied):
        groups: dict[tuple[Any, ...], list[Comparison]] = {}
        for comparison in comparisons:
            if comparison["summary"] is not None:
                groups.setdefault(_others(comparison, axis), []).append(comparison)
        for group in groups.values():
            at = {name: value for name, value in group[0]["at"].items() if name != axis}
            for method in methods:
                points = [_point(comparison, axis, method) for comparison in group]
                kept = sorted((point for point in points if point is not None), key=lambda point: point["x"])
                if len(kept) > 1:
                    metric = group[0]["summary"]["metric"]
                    found.append({"axis": axis, "method": method, "metric": metric, "at": at, "points": kept})
    return found


def place(comparison: Comparison, axis: str) -> float:
    """Where a comparison lies on an ordered axis, as a number: rows, rows of a class, or parameters."""
    summary, value = comparison["summary"], comparison["at"][axis]
    if axis == "limit":
        return float(comparison.get("train_rows") or summary["data"]["rows"]["train"])
    if axis == "shots":
        return float(value if value is not None else summary["data"]["rows"]["train"])
    if axis == "budget":
        return float((summary.get("budget") or {}).get("params") or summary["base_params"])
    return float(summary["base_params"])


def _point(comparison: Comparison, axis: str, method: str) -> dict[str, Any] | None:
    entry = entry_of(comparison["summary"], method)
    if entry is None:
        return None
    own_size = axis == "budget" and comparison["at"]["budget"] is None
    x = float(entry["params"]) if own_size else place(comparison, axis)
    return {"x": x, "value": comparison["at"][axis], "score": entry["score"], "ci": entry.get("ci95")}


def _others(comparison: Comparison, axis: str) -> tuple[Any, ...]:
    return tuple(value for name, value in sorted(comparison["at"].items()) if name != axis)
