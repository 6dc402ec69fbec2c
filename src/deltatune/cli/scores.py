"""Scores as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.table import Table

from deltatune.cli.screen import table
from deltatune.comparison.formats import score

if TYPE_CHECKING:
    from deltatune.tasks import Task


def scores_table(task: Task, splits: Mapping[str, Mapping[str, float]]) -> Table:
    """A row for each split, the task's own metric first; metrics that only repeat an earlier one are left out."""
    found = list(splits.values())
    names: list[str] = []
    for name in [task.metric, *found[0]]:
        if not any(all(scores[name] == scores[other] for scores in found) for other in names):
            names.append(name)
    rows = [[split, *(score(scores[name]) for name in names)] for split, scores in splits.items()]
    return table(["", *names], rows, right=names)
