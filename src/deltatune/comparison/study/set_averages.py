"""Averages over the data sets of a study: mean scores on one scale, ranks, and the averages of suites.

Only combinations that every data set has count, so that no average is over easier rows than another. Other axes are
averaged within a data set first: data sets are the sample over which ranks are tested (Demsar 2006, JMLR 7).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import numpy as np

from deltatune.comparison.statistics.rank_tests import row_ranks
from deltatune.comparison.study.study_sources import SuiteSets
from deltatune.tasks.metrics.mean_score import comparable
from deltatune.tasks.metrics.metric_facts import bounds, lower_is_better

Comparison = Mapping[str, Any]
"""One of `study["comparisons"]`: {"at", "summary", ...}."""


@dataclass(frozen=True)
class SetScores:
    """The score of every method on every data set, over the combinations that all data sets have."""

    sets: tuple[str, ...]
    used: tuple[int, ...]
    """Indices of the comparisons that count."""
    own: Mapping[str, Mapping[str, float]]
    """Method -> data set -> mean score with higher being better: of lower-is-better metrics the negative."""
    common: Mapping[str, Mapping[str, float]]
    """Method -> data set -> mean score on the common scale; without sets whose metric has no upper bound."""

    @property
    def complete(self) -> list[str]:
        """Methods with a score on every data set."""
        return [method for method, scores in self.own.items() if len(scores) == len(self.sets)]

    def average(self, method: str) -> float | None:
        """The mean over all data sets, or None: a mean over fewer of them cannot be compared."""
        scores = self.common.get(method, {})
        scaled = {name for each in self.common.values() for name in each}
        return mean(scores.values()) if scores and len(scores) == len(scaled) else None

    def ranks(self) -> dict[str, float]:
        """The mean rank of every method that has all scores; 1 is best, equal scores share their ranks."""
        methods = self.complete
        if not methods or not self.sets:
            return {}
        table = np.array([[self.own[method][name] for method in methods] for name in self.sets])
        return dict(zip(methods, row_ranks(table).mean(0).tolist(), strict=True))


def set_scores(comparisons: Sequence[Comparison], methods: Sequence[str]) -> SetScores:
    """The scores of all methods (as they were asked for) by data set."""
    done = [i for i, comparison in enumerate(comparisons) if comparison["summary"] is not None]
    sets = tuple(dict.fromkeys(comparisons[i]["at"]["data"] for i in done))
    found: dict[tuple[Any, ...], dict[str, int]] = {}
    for i in done:
        found.setdefault(other_values(comparisons[i]["at"]), {})[comparisons[i]["at"]["data"]] = i
    used = tuple(sorted(i for by_set in found.values() if len(by_set) == len(sets) for i in by_set.values()))
    own: dict[str, dict[str, float]] = {}
    common: dict[str, dict[str, float]] = {}
    for method in methods:
        own[method], common[method] = {}, {}
        for name in sets:
            entries = [
                (entry_of(comparisons[i]["summary"], method), comparisons[i]["summary"]["metric"])
                for i in used
                if comparisons[i]["at"]["data"] == name
            ]
            if not entries or any(entry is None for entry, _ in entries):
                continue
            values = [(float(entry["score"]), metric) for entry, metric in entries if entry is not None]
            own[method][name] = mean(-value if lower_is_better(metric) else value for value, metric in values)
            scaled = [on_common_scale(value, metric) for value, metric in values]
            if None not in scaled:
                common[method][name] = mean(value for value in scaled if value is not None)
    return SetScores(sets, used, own, common)


def entry_of(summary: Mapping[str, Any], method: str) -> Mapping[str, Any] | None:
    """The entry of a method as it was asked for, if it has a score."""
    entries = [entry for entry in summary["methods"] if asked_of(entry) == method and _has_score(entry)]
    sign = -1 if lower_is_better(summary["metric"]) else 1
    return max(entries, key=lambda entry: sign * float(entry["score"])) if entries else None


def asked_of(entry: Mapping[str, Any]) -> str:
    """The method as the user wrote it, which is the same on every model and budget."""
    return str(entry.get("asked") or entry["method"])


def other_values(at: Mapping[str, Any]) -> tuple[Any, ...]:
    """The values of a point on all axes but the data."""
    return tuple(value for axis, value in sorted(at.items()) if axis != "data")


def on_common_scale(value: float, metric: str) -> float | None:
    """A score as one of which higher is better and 1 is the best; None for metrics without an upper bound.

    Of losses and errors m it is 1/(1 + m), of metrics up to more than 1 (CIDEr: 10) the share of that. Correlations
    stay as they are, from -1 to 1, as papers average them.
    """
    if lower_is_better(metric):
        return float(comparable(value, metric))
    highest = bounds(metric)[1]
    return None if math.isinf(highest) else value / highest


def scale_notes(metrics: Mapping[str, str]) -> list[str]:
    """What the common scale changes, in sentences; none if all metrics are better when higher, up to 1."""
    notes = []
    by_metric: dict[str, list[str]] = {}
    for name, metric in metrics.items():
        by_metric.setdefault(metric, []).append(name)
    if len(by_metric) > 1:
        listed = "; ".join(f"{metric}: {', '.join(names)}" for metric, names in by_metric.items())
        notes.append(f"the mean is over different metrics ({listed}); ranks do not depend on their scales")
    for metric, names in by_metric.items():
        highest = bounds(metric)[1]
        if lower_is_better(metric):
            notes.append(f"{metric} is better when lower: m counts as 1/(1 + m) in the mean ({', '.join(names)})")
        elif math.isinf(highest):
            notes.append(f"{metric} has no upper bound: {', '.join(names)} counts in ranks and not in the mean")
        elif highest != 1:
            notes.append(f"{metric} goes up to {highest:g}: it is divided by that in the mean ({', '.join(names)})")
    return notes


# --- suites ---


def suite_averages(comparisons: Sequence[Comparison], methods: Sequence[str], suite: SuiteSets) -> list[dict[str, Any]]:
    """The suite's average of every method, for each combination of the other axes.

    [{"suite", "at" (without the data), "tasks", "missing", "methods": [{"method", "average", "tasks": {...}}]}]:
    a task's score is the mean of its metrics, each the mean over the test rows' parts (MNLI: matched and mismatched).
    The average is over those that the study has, and `missing` are the others.
    """
    groups: dict[tuple[Any, ...], list[Comparison]] = {}
    for comparison in comparisons:
        if comparison["at"]["data"] in suite.tasks:
            groups.setdefault(other_values(comparison["at"]), []).append(comparison)
    found = []
    for group in groups.values():
        finished = [each for each in group if each["summary"] is not None]
        if not finished:
            continue
        rows = []
        for method in methods:
            scores = {suite.tasks[each["at"]["data"]]: _task_score(each, method, suite) for each in finished}
            known = [value for value in scores.values() if value is not None]
            average = mean(known) if known and len(known) == len(group) else None
            rows.append({"method": method, "average": average, "tasks": scores})
        at = {axis: value for axis, value in group[0]["at"].items() if axis != "data"}
        tasks = [suite.tasks[each["at"]["data"]] for each in group]
        missing = [task for task in suite.suite.tasks if task not in tasks]
        found.append({"suite": suite.suite.title, "at": at, "tasks": tasks, "missing": missing, "methods": rows})
    return found


def _task_score(comparison: Comparison, method: str, suite: SuiteSets) -> float | None:
    """The mean of a task's metrics over its test rows and their further parts; None where one of them is missing."""
    entry = entry_of(comparison["summary"], method)
    if entry is None:
        return None
    metrics = suite.suite.tasks[suite.tasks[comparison["at"]["data"]]]
    parts = [entry.get("scores") or {}, *(entry.get("more_scores") or {}).values()]
    values = [part.get(metric) for part in parts for metric in metrics]
    known = [float(value) for value in values if value is not None]
    return mean(known) if len(known) == len(values) else None


def _has_score(entry: Mapping[str, Any]) -> bool:
    value = entry.get("score")
    return value is not None and not math.isnan(value)
