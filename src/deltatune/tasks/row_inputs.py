"""Rows of users as the input of a trained task: in the layout that its training rows had."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deltatune.data import inputs
from deltatune.data.dataset import TASK_OF
from deltatune.tasks.task import Row, Task


def row_inputs(task: Task, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Unlabelled rows as the task reads them: words in lists, tables in one line, absent inputs of instructions empty.

    Raises DeltatuneError naming columns that are missing and rows that cannot be used.
    """
    optional: Mapping[str, str] = dict.fromkeys(task.text, "") if task.answers == "text" and len(task.text) > 1 else {}
    return inputs([{**optional, **row} for row in rows], TASK_OF[task.label_kind], task.text)
