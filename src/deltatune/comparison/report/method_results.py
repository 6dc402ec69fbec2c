"""The result of one method as tables and figures need it: its row of the summary, a short label, a marker style."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deltatune.comparison.report.figures.svg import MarkerStyle, marker_styles
from deltatune.comparison.report.number_format import number, short_labels
from deltatune.comparison.results.records import current_keys
from deltatune.tasks.metrics.metric_facts import lower_is_better


@dataclass(frozen=True)
class MethodResult:
    """A method's row of the summary with its label and marker style."""

    row: Mapping[str, Any]
    """The method's row of summary.json."""
    label: str
    """Short name, unique in the comparison."""
    style: MarkerStyle

    @property
    def reference(self) -> bool:
        """Whether it is a reference: a method without a size to fit to the budget."""
        return bool(self.row.get("reference"))

    @property
    def score(self) -> float | None:
        """Mean test score."""
        return self.number("score")

    @property
    def more_scores(self) -> dict[str, float | None]:
        """Mean score of each further test split, such as test_mismatched."""
        metric, splits = str(self.row.get("metric")), self.row.get("more_scores") or {}
        return {split: number(scores, metric) for split, scores in splits.items()}

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % confidence interval of the score."""
        ends = self.row.get("ci95")
        return (float(ends[0]), float(ends[1])) if self.score is not None and ends else None

    def number(self, key: str) -> float | None:
        """A finite number of the row, or None."""
        return number(self.row, key)


def method_results(summary: Mapping[str, Any]) -> list[MethodResult]:
    """All methods: those fitted to the budget, then the references, each from best to worst score, failed ones last."""
    sign = -1 if lower_is_better(summary["metric"]) else 1
    rows = sorted(map(current_keys, summary["methods"]), key=lambda row: _rank(row, sign))
    labels = short_labels(rows)
    styles = marker_styles([bool(row.get("reference")) for row in rows])
    return [MethodResult(row, labels[str(row["method"])], style) for row, style in zip(rows, styles, strict=True)]


def _rank(row: Mapping[str, Any], sign: int) -> tuple[bool, bool, float, str]:
    score = number(row, "score")
    return bool(row.get("reference")), score is None, -sign * (score or 0.0), str(row["method"])
