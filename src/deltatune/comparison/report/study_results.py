"""A study as its page, its tables and its exports read it: comparisons with labels, methods with scores in each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from deltatune.comparison.report import number_format as formats
from deltatune.comparison.report.figures.svg import MarkerStyle, marker_styles
from deltatune.comparison.report.html_page import short_name
from deltatune.tasks.metrics.metric_facts import lower_is_better

if TYPE_CHECKING:
    from deltatune.comparison.report.method_results import MethodResult

AXES = ("data", "model", "quantize", "limit", "budget", "shots")
"""Axes of a study in the order in which labels name them."""
AXIS_TITLES = {
    "data": "data",
    "model": "model size",
    "quantize": "quantisation",
    "limit": "training rows",
    "budget": "trained parameters",
    "shots": "training rows a class",
}
UNQUANTIZED = "unquantised"
"""What a base with its published weights is called where others are quantised."""
Entry = Mapping[str, Any]
"""The entry of a method in the summary of one comparison."""


@dataclass(frozen=True)
class StudyComparison:
    """One comparison of a study."""

    index: int
    at: Mapping[str, Any]
    """Its value on each axis."""
    summary: Mapping[str, Any] | None
    """None if it has not run yet, or did not finish."""
    report: str | None
    """Path of its page from the study's folder."""
    error: str | None = None

    @property
    def metric(self) -> str:
        """The primary metric; "" without a summary."""
        return str((self.summary or {}).get("metric") or "")

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """The entry of each method, by the text that the user wrote."""
        return {str(row.get("asked") or row["method"]): row for row in (self.summary or {}).get("methods") or ()}

    @cached_property
    def best(self) -> float | None:
        """The best score of any method."""
        scores = [score for row in self.entries.values() if (score := formats.number(row, "score")) is not None]
        return (min if lower_is_better(self.metric) else max)(scores, default=None) if scores else None


@dataclass(frozen=True)
class StudyMethod:
    """A method in all comparisons of a study."""

    asked: str
    """The method as the user wrote it: what it is in every comparison."""
    label: str
    style: MarkerStyle
    mean: float | None
    """Mean score over the data sets, as the study computed it."""
    rank: float | None
    params: float | None
    """Trained parameters of one task."""


class StudyResults:
    """The content of study.json, also of a study that is not finished."""

    def __init__(self, study: Mapping[str, Any]) -> None:
        self.study = study
        self.comparisons = [
            StudyComparison(i, row.get("at") or {}, row.get("summary"), row.get("report"), row.get("error"))
            for i, row in enumerate(study.get("comparisons") or ())
        ]

    @cached_property
    def methods(self) -> list[StudyMethod]:
        """All methods, the one with the best average rank first, then by mean score, then as asked."""
        averages = {str(row["method"]): row for row in self.study.get("averages") or ()}
        asked = [str(text) for text in self.study.get("methods") or ()]
        asked += [text for each in self.comparisons for text in each.entries]
        texts = list(dict.fromkeys(asked))
        entries = {text: [each.entries[text] for each in self.comparisons if text in each.entries] for text in texts}
        labels = formats.short_labels([{"method": text, "name": _name(text, entries[text])} for text in texts])
        worst = math.inf

        def order(text: str) -> tuple[float, float, int]:
            row = averages.get(text) or {}
            rank, mean = formats.number(row, "rank"), formats.number(row, "mean")
            return rank if rank is not None else worst, -mean if mean is not None else worst, texts.index(text)

        texts = sorted(texts, key=order)
        styles = marker_styles([all(row.get("reference") for row in entries[text] or [{}]) for text in texts])
        return [
            StudyMethod(
                text,
                labels[text],
                style,
                formats.number(averages.get(text) or {}, "mean"),
                formats.number(averages.get(text) or {}, "rank"),
                _mean([params for row in entries[text] if (params := formats.number(row, "params")) is not None]),
            )
            for text, style in zip(texts, styles, strict=True)
        ]

    @cached_property
    def varying(self) -> list[str]:
        """The axes with more than one value."""
        names = [*AXES, *(name for each in self.comparisons for name in each.at if name not in AXES)]
        return [name for name in dict.fromkeys(names) if len({str(each.at.get(name)) for each in self.comparisons}) > 1]

    @cached_property
    def column_axis(self) -> str:
        """The axis along the columns of a table: the data, or else the one with most values."""
        if "data" in self.varying or not self.varying:
            return "data"
        return max(self.varying, key=lambda name: len({str(each.at.get(name)) for each in self.comparisons}))

    @cached_property
    def groups(self) -> dict[str, list[StudyComparison]]:
        """The comparisons by what they have in common besides the axis along the columns; "" if that is all."""
        groups: dict[str, list[StudyComparison]] = {}
        for each in self.comparisons:
            others = [name for name in self.varying if name != self.column_axis]
            groups.setdefault(self.place(each.at, others), []).append(each)
        return groups

    def label(self, comparison: StudyComparison) -> str:
        """What tells a comparison from the others: `sst2, 500 rows`."""
        return self.place(comparison.at, self.varying or ["data"])

    def place(self, at: Mapping[str, Any], axes: Sequence[str]) -> str:
        """Values of axes as text."""
        return ", ".join(self.value_text(name, at.get(name)) for name in axes)

    def value_text(self, axis: str, value: Any) -> str:
        """A value of an axis for readers: `500 rows`, `16 rows a class`, `all-MiniLM-L6-v2`."""
        if axis == "model":
            return self._models.get(str(value)) or (short_name(str(value)).rpartition("/")[2] if value else "model")
        if axis == "limit":
            return "all rows" if value is None else f"{value:,} rows" if isinstance(value, int) else f"{value} rows"
        if axis == "shots":
            return "all rows" if value is None else f"{value} rows a class"
        if axis == "quantize":
            return UNQUANTIZED if value is None else str(value)
        if axis == "budget":
            return "sizes as written" if value is None else f"budget {value}"
        return short_name(str(value)) if value is not None else formats.MISSING

    @cached_property
    def _models(self) -> dict[str, str]:
        return formats.model_labels([str(each.at["model"]) for each in self.comparisons if each.at.get("model")])

    @property
    def metric(self) -> str:
        """The metric if it is the same everywhere, else "score"."""
        metrics = {each.metric for each in self.comparisons if each.summary}
        return metrics.pop() if len(metrics) == 1 else "score"

    def score(self, method: StudyMethod, comparison: StudyComparison) -> float | None:
        """The test score of a method in a comparison."""
        return formats.number(comparison.entries.get(method.asked) or {}, "score")


def mean_results(results: StudyResults) -> list[MethodResult]:
    """The methods of a study as those of one comparison: their mean scores against trained parameters."""
    from deltatune.comparison.report.method_results import MethodResult  # it needs numpy, which help screens do not

    return [
        MethodResult(
            {"method": method.asked, "score": method.mean, "params": method.params}, method.label, method.style
        )
        for method in results.methods
        if method.mean is not None and method.params is not None
    ]


def _name(text: str, entries: Sequence[Entry]) -> str:
    """The short name of a method: that of its entries, or of its text."""
    return str(entries[0].get("name") or text) if entries else text.partition("(")[0]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
