"""Summary of a study from the summaries of its comparisons: study.json, as plain data that its page reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from deltatune.comparison.report.study_page import write_study_report
from deltatune.comparison.results.records import write_summary
from deltatune.comparison.statistics.rank_tests import rank_methods
from deltatune.comparison.study.quantization_verdicts import QuantizationVerdicts, quantization_summary
from deltatune.comparison.study.set_averages import (
    SetScores,
    asked_of,
    entry_of,
    scale_notes,
    set_scores,
    suite_averages,
)
from deltatune.comparison.study.study_plan import PAGE, STUDY, Point, StudyPlan
from deltatune.comparison.study.study_recommendation import recommend_for_study
from deltatune.comparison.study.study_series import series
from deltatune.comparison.study.study_totals import totals

FEWEST_SETS = 3
"""Data sets from which on ranks are tested: with two of them no ranks are significant."""


def study_summary(
    study: StudyPlan, results: Mapping[Point, Mapping[str, Any]], verdicts: QuantizationVerdicts | None = None
) -> dict[str, Any]:
    """The whole study as far as it is finished.

    verdicts: those between quantisations, where the study has several. results: of the comparisons that were tried,
    their {"summary", "error", "base_bytes", "train_rows", "minutes"}.
    """
    comparisons = [_comparison(point, study.folders[point], results.get(point, {})) for point in study.points]
    summaries = [comparison["summary"] for comparison in comparisons if comparison["summary"] is not None]
    methods = list(dict.fromkeys(asked_of(entry) for summary in summaries for entry in summary["methods"]))
    scores = set_scores(comparisons, methods)
    ranks = _ranks(scores)
    means = scores.ranks()
    suites = [each for suite in study.suites for each in suite_averages(comparisons, methods, suite)]
    varied = study.axes.varied or ("data",)
    stored = quantization_summary(comparisons, methods, verdicts or QuantizationVerdicts(study.axes), varied)
    quantizations = {} if stored is None else {"quantizations": stored}
    published = {"published": [dict(figure) for figure in study.published]} if study.published else {}
    return {
        "schema": 1,
        "kind": "study",
        "name": study.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "elapsed_seconds": sum(summary["elapsed_seconds"] for summary in summaries),
        "minutes": study.minutes,
        "axes": study.axes.to_json(),
        "comparisons": comparisons,
        "methods": methods,
        "averages": [
            {
                "method": method,
                "mean": scores.average(method),
                "rank": means.get(method),
                "scores": {
                    str(i): score
                    for i, comparison in enumerate(comparisons)
                    if (score := _score_of(comparison, method)) is not None
                },
            }
            for method in methods
        ],
        "averaged": list(scores.used),
        "ranks": ranks,
        "suites": suites,
        "totals": totals(comparisons, methods, study.tasks),
        "series": series(comparisons, methods, study.axes.varied),
        "failed": [
            {"at": comparison["at"], "error": comparison["error"]} for comparison in comparisons if comparison["error"]
        ],
        "notes": _notes(study, comparisons, scores, methods),
        **published,
        **quantizations,
        "recommendation": recommend_for_study(
            comparisons, methods, scores, ranks, (stored or {}).get("sentences") or ()
        ),
    }


def write_study(
    study: StudyPlan, results: Mapping[Point, Mapping[str, Any]], verdicts: QuantizationVerdicts | None = None
) -> dict[str, Any]:
    """Write study.json and study.html, each atomically; returns the summary."""
    summary = study_summary(study, results, verdicts)
    write_summary(study.out / STUDY, summary)
    write_study_report(summary, study.out / PAGE)
    return summary


def _comparison(point: Point, folder: str, result: Mapping[str, Any]) -> dict[str, Any]:
    summary = result.get("summary")
    return {
        "at": point.to_json(),
        "folder": folder,
        "report": f"{folder}/report.html" if summary is not None else None,
        "summary": summary,
        "error": result.get("error"),
        "base_bytes": result.get("base_bytes"),
        "train_rows": result.get("train_rows"),
        "minutes": result.get("minutes"),
    }


def _score_of(comparison: Mapping[str, Any], method: str) -> float | None:
    entry = entry_of(comparison["summary"], method) if comparison["summary"] is not None else None
    return None if entry is None else entry["score"]


def _ranks(scores: SetScores) -> dict[str, Any] | None:
    """Friedman's test over the data sets, and the critical difference of Nemenyi's; None for too few of them."""
    methods = scores.complete
    if len(scores.sets) < FEWEST_SETS or len(methods) < 2:
        return None
    return rank_methods({method: [scores.own[method][name] for name in scores.sets] for method in methods}).to_json()


def _notes(
    study: StudyPlan, comparisons: Sequence[Mapping[str, Any]], scores: SetScores, methods: Sequence[str]
) -> list[str]:
    done = [comparison for comparison in comparisons if comparison["summary"] is not None]
    metrics = {comparison["at"]["data"]: comparison["summary"]["metric"] for comparison in done}
    notes = [*study.notes, *(scale_notes(metrics) if len(metrics) > 1 else [])]
    if len(scores.used) < len(done):
        notes.append(
            f"averages and ranks are over {len(scores.used)} of {len(done)} comparisons, those at values that every "
            "data set has"
        )
    absent = [method for method in methods if method not in scores.complete]
    if absent and done:
        notes.append(f"without average and rank, as a comparison has no score of them: {', '.join(absent)}")
    return notes
