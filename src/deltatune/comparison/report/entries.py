"""One method of a comparison as the table and the figures need it: its row, its short label, its look."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deltatune.comparison.metric_scales import LOWER_IS_BETTER
from deltatune.comparison.report.number_format import number, short_labels
from deltatune.comparison.report.svg import Look, looks


@dataclass(frozen=True)
class Entry:
    """A method, ready to be drawn."""

    row: Mapping[str, Any]
    """Its part of the summary."""
    label: str
    """Short name, unique in the comparison."""
    look: Look

    @property
    def reference(self) -> bool:
        """Whether it has no size to fit to the budget."""
        return bool(self.row.get("reference"))

    @property
    def score(self) -> float | None:
        """Mean test score."""
        return self.number("score")

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the score."""
        ends = self.row.get("ci95")
        return (float(ends[0]), float(ends[1])) if self.score is not None and ends else None

    def number(self, key: str) -> float | None:
        """A finite number of the row, or None."""
        return number(self.row, key)


def entries(summary: Mapping[str, Any]) -> list[Entry]:
    """All methods: those fitted to the budget, then the references; the best score first, none last."""
    sign = -1 if summary["metric"] in LOWER_IS_BETTER else 1
    rows = sorted(summary["methods"], key=lambda row: _order(row, sign))
    labels = short_labels(rows)
    drawn = looks([bool(row.get("reference")) for row in rows])
    return [Entry(row, labels[str(row["method"])], look) for row, look in zip(rows, drawn, strict=True)]


def _order(row: Mapping[str, Any], sign: int) -> tuple[bool, bool, float, str]:
    score = number(row, "score")
    return bool(row.get("reference")), score is None, -sign * (score or 0.0), str(row["method"])
