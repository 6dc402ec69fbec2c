"""Scores by group: of the rows that share a value in a column, such as WebNLG's seen and unseen categories."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deltatune.comparison.statistics import draw, intervals_of
from deltatune.core.errors import DeltatuneError, nearest
from deltatune.tasks import Task

RESAMPLES = 1000
"""Bootstrap resamples of the rows of a group."""
NO_VALUE = "(none)"
"""Group of the rows without a value."""

Groups = dict[str, list[int]]
"""Value of a column as text -> the numbers of its rows, in the order of the values."""


def group_rows(rows: Sequence[Mapping[str, Any]], column: str) -> Groups:
    """The rows by their value in a column; numbers in their order, then texts, then rows without a value.

    Raises DeltatuneError naming the columns if no row has this one.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if column not in columns:
        names = ", ".join(map(repr, columns))
        raise DeltatuneError(f"--by {column}: the rows have no such column{nearest(column, columns)}; columns: {names}")
    groups: Groups = {}
    for i, row in enumerate(rows):
        groups.setdefault(_name(row.get(column)), []).append(i)
    return {name: groups[name] for name in sorted(groups, key=_order)}


def _name(value: Any) -> str:
    """A value as the name of a group. A list or an object is one value."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return NO_VALUE
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, (list, dict)) else str(value)


def _order(name: str) -> tuple[int, float, str]:
    try:
        number = float(name)
    except ValueError:
        return (2 if name == NO_VALUE else 1, 0.0, name)
    return (0, number, name) if np.isfinite(number) else (1, 0.0, name)


def group_scores(
    task: Task, answers: Any, references: Any, column: str, groups: Groups
) -> dict[str, dict[str, dict[str, Any]]]:
    """`{column: {value: {"rows", "scores", "interval"}}}`; each group is scored as if it were the whole data set."""
    scored = {}
    for name, numbers in groups.items():
        part = (_subset(answers, numbers), _subset(references, numbers))
        scored[name] = {
            "rows": len(numbers),
            "scores": task.score(*part),
            "interval": score_interval(task, *part, len(numbers)),
        }
    return {column: scored}


def score_interval(task: Task, answers: Any, references: Any, rows: int) -> list[float] | None:
    """95 % interval of the primary metric over the rows, by a bootstrap; None for a single row."""
    if rows < 2:
        return None
    scorer = task.primary_score(answers, references).resampled
    interval = intervals_of(draw(task.metric, {"": [scorer]}, rows, RESAMPLES))[""]
    return [interval.low, interval.high]


def _subset(values: Any, numbers: Sequence[int]) -> Any:
    return values[numbers] if isinstance(values, np.ndarray) else [values[i] for i in numbers]
