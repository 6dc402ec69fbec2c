"""Figures of experiments as plain rows {"method", "at", "metric", "value"}, and published ones beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from deltatune.comparison.report.study_results import StudyResults
from deltatune.comparison.report.study_tables import measured_value, published_scale
from deltatune.core.errors import DeltatuneError

Figure = dict[str, Any]
"""{"method", "at", "metric", "value"}; of published ones also "source", and "here", what was measured."""

SHARES = ("compare", "continual", "facts")
"""Experiments whose figures are shares of 1, which papers print in per cent."""


def beside(published: Sequence[Mapping[str, Any]], measured: Sequence[Mapping[str, Any]], kind: str) -> list[Figure]:
    """The published figures, each with the measured one of its method, place and metric, on the published scale."""
    return [_with(figure, _find(figure, measured), scaled=kind in SHARES) for figure in published]


def beside_study(study: Mapping[str, Any]) -> list[Figure]:
    """The published figures of study.json, each with the score that the study measured, on the published scale."""
    results = StudyResults(study)
    return [_with(figure, measured_value(figure, results), scaled=True) for figure in study.get("published") or ()]


def _with(figure: Mapping[str, Any], measured: float | None, scaled: bool) -> Figure:
    """A published figure with the measured one; `scaled`: shares of 1 in per cent where the published one is."""
    scale = published_scale(figure["value"], measured, figure["metric"]) if scaled else 1.0
    return {**figure, "here": None if measured is None else scale * measured}


def _find(figure: Mapping[str, Any], measured: Sequence[Mapping[str, Any]]) -> float | None:
    for row in measured:
        same_place = all(str(row["at"].get(axis)) == str(value) for axis, value in figure["at"].items())
        if same_place and (row["method"], row["metric"]) == (figure["method"], figure["metric"]):
            value: float | None = row["value"]
            return value
    return None


# ---- the figures of each experiment


def dimension_figures(result: Mapping[str, Any], at: Mapping[str, Any], method: str) -> Iterator[Figure]:
    """The dimension that reaches the target, and the score of full fine-tuning."""
    share = f"d{100 * result['question']['fraction']:g}"
    yield {"method": method, "at": dict(at), "metric": share, "value": result["dimension"]}
    yield {"method": method, "at": dict(at), "metric": f"full {result['metric']}", "value": result["full"]["score"]}


def continual_figures(result: Mapping[str, Any], asked: Mapping[str, str]) -> Iterator[Figure]:
    """The average at the end, backward transfer and forgetting of each method and way to learn.

    asked: the methods as the recipe writes them, by their text forms.
    """
    for entry in result["methods"]:
        for mode in ("apart", "sequential", "joint"):
            for metric in ("average", "backward_transfer", "forgetting"):
                if metric in entry.get(mode, {}):
                    method = asked.get(entry["method"], entry["method"])
                    yield {"method": method, "at": {"mode": mode}, "metric": metric, "value": entry[mode][metric]}


def latency_figures(result: Mapping[str, Any]) -> Iterator[Figure]:
    """Milliseconds of each method, form and cell, and per cent beyond the bare model."""
    asked = {each["method"]: each["asked"] for each in result["methods"]}
    for row in result["rows"]:
        at = {"batch": row["batch"], "length": row["length"], "form": row["form"]}
        method = asked.get(row["method"], "bare")
        yield {"method": method, "at": at, "metric": "milliseconds", "value": row["milliseconds"]}
        if row["form"] != "bare":
            yield {"method": method, "at": at, "metric": "per cent", "value": 100 * (row["ratio"] - 1)}


def fact_figures(report: Mapping[str, Any], model: str) -> Iterator[Figure]:
    """P@k of each wording of each relation."""
    for relation in report["relations"]:
        for wording in relation["wordings"]:
            at = {"model": model, "relation": relation["relation"]}
            for k in report["top"]:
                yield {"method": wording["wording"], "at": at, "metric": f"p@{k}", "value": wording[f"p@{k}"]}


def storage_figures(methods: Sequence[tuple[str, Any, Mapping[str, int]]], tasks: int) -> Iterator[Figure]:
    """Trained parameters, bytes of one adapter, and bytes of all tasks with one base and as fine-tuned copies.

    methods: (as asked, its count, its storage). Raises DeltatuneError for methods that the model cannot take.
    """
    problems = [f"{asked}: {count.problem}" for asked, count, _ in methods if count.problem]
    if problems:
        raise DeltatuneError("\n".join(problems))
    for asked, count, stored in methods:
        figures = {
            "parameters": count.trained,
            "bytes": count.file_bytes,
            f"bytes of {tasks:,} tasks": stored["adapters"],
            f"bytes of {tasks:,} copies": stored["copies"],
        }
        for metric, value in figures.items():
            yield {"method": asked, "at": {}, "metric": metric, "value": value}
