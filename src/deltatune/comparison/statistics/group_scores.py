"""Scores by group: of the rows that share a value in a column, such as WebNLG's seen and unseen categories."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deltatune.comparison.statistics.score_statistics import draw, intervals_of
from deltatune.core.errors import DeltatuneError, nearest
from deltatune.data.columns.column_values import is_missing
from deltatune.tasks import Classify, Task

RESAMPLES = 1000
"""Bootstrap resamples of the rows of a group."""
NO_VALUE = "(none)"
"""Group of the rows without a value."""

Groups = dict[str, list[int]]
"""Value of a column as text -> the numbers of its rows, in the order of the values."""


def group_rows(rows: Sequence[Mapping[str, Any]], column: str) -> Groups:
    """The rows by their value in a column; numbers in their order, then texts, then rows without a value.

    `idx.question` is the value of `question` in the objects of the column `idx`. Raises DeltatuneError naming the
    columns if no row has this one.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    outer, _, inner = column.partition(".")
    if column not in columns and any(isinstance(row.get(outer), dict) and inner in row[outer] for row in rows):
        rows = [{column: row[outer].get(inner) if isinstance(row.get(outer), dict) else None} for row in rows]
    elif column not in columns:
        names = ", ".join(map(repr, columns))
        raise DeltatuneError(f"--by {column}: the rows have no such column{nearest(column, columns)}; columns: {names}")
    groups: Groups = {}
    for i, row in enumerate(rows):
        groups.setdefault(_name(row.get(column)), []).append(i)
    return {name: groups[name] for name in sorted(groups, key=_order)}


def _name(value: Any) -> str:
    """A value as the name of a group. A list or an object is one value."""
    if is_missing(value):
        return NO_VALUE
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, (list, dict)) else str(value)


def _order(name: str) -> tuple[int, float, str]:
    try:
        number = float(name)
    except ValueError:
        return (2 if name == NO_VALUE else 1, 0.0, name)
    return (0, number, name) if np.isfinite(number) else (1, 0.0, name)


def scores_by(task: Task, answers: Any, references: Any, columns: Sequence[tuple[str, Groups]]) -> dict[str, Any]:
    """Scores of groups by one or more columns, each group scored as if it were the whole data set.

    Returns `{"interval": that of all rows, "by": {column: {value: {"rows", "scores", "interval"}}}}`, and for classes
    `"whole_groups": {column: {"share", "groups"}}`, the share of the groups without a wrong row: the exact match of
    MultiRC, whose answers are grouped by question (Khashabi et al. 2018, https://aclanthology.org/N18-1023).
    """
    rows = sum(map(len, columns[0][1].values()))
    result: dict[str, Any] = {"interval": score_interval(task, answers, references, rows), "by": {}}
    for column, groups in columns:
        scored = result["by"][column] = {}
        for name, numbers in groups.items():
            part = (_subset(answers, numbers), _subset(references, numbers))
            scored[name] = {
                "rows": len(numbers),
                "scores": task.score(*part),
                "interval": score_interval(task, *part, len(numbers)),
            }
    if isinstance(task, Classify) and task.label_kind == "classes":
        right = task.predictions(answers) == np.asarray(references)
        result["whole_groups"] = {
            column: {
                "share": float(np.mean([right[numbers].all() for numbers in groups.values()])),
                "groups": len(groups),
            }
            for column, groups in columns
        }
    return result


def score_interval(task: Task, answers: Any, references: Any, rows: int) -> list[float] | None:
    """95 % interval of the primary metric over the rows, by a bootstrap; None for a single row."""
    if rows < 2:
        return None
    scorer = task.primary_score(answers, references).resampled
    interval = intervals_of(draw(task.metric, {"": [scorer]}, rows, RESAMPLES))[""]
    return [interval.low, interval.high]


def _subset(values: Any, numbers: Sequence[int]) -> Any:
    return values[numbers] if isinstance(values, np.ndarray) else [values[i] for i in numbers]
