"""Rows of requests as rows of an adapter's task, and the task that several adapters share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from deltatune.serving.texts.invalid_request import InvalidRequest
from deltatune.tasks import Tag, Task

ALIKE = 0.75
"""Names of columns that are as similar are taken for a slip of the keyboard."""


def rows_for(task: Task, rows: Sequence[Any], name: str) -> list[dict[str, Any]]:
    """Rows by the columns of the task of the adapter `name`. As many texts as a pair has are one row.

    Raises InvalidRequest for what is no row of the task.
    """
    if 1 < len(task.text) == len(rows) and task.answers != "text" and all(isinstance(row, str) for row in rows):
        rows = [list(rows)]
    return [named_row(row, task, name) for row in rows]


def named_row(row: Any, task: Task, name: str) -> dict[str, Any]:
    """A row by its columns: of a text, or of as many texts as there are columns."""
    if isinstance(row, Mapping):
        for column in task.text:
            given = [key for key in row if key not in task.text and len(key) <= 100]
            slip = [] if column in row else get_close_matches(column, given, 1, ALIKE)
            if slip:  # columns that may be empty would be left out without a word
                raise InvalidRequest(f"{name} reads no column {slip[0]!r}, did you mean {column!r}?", "input")
        return dict(row)
    if isinstance(row, str) and (len(task.text) == 1 or task.answers == "text"):
        return {task.text[0]: row}
    if isinstance(row, list) and len(row) == len(task.text) > 1:
        return dict(zip(task.text, row, strict=True))
    if isinstance(row, list) and isinstance(task, Tag):
        return {task.text[0]: row}
    columns = ", ".join(task.text)
    raise InvalidRequest(
        f"{name} reads {'a text' if len(task.text) == 1 else f'{len(task.text)} texts'} a row: give "
        f"{'a text' if len(task.text) == 1 else 'a list of them'}, or an object with {columns}",
        "input",
    )


def common_task(names: Sequence[str], tasks: Sequence[Task]) -> Task:
    """The task that adapters share, but for what may change after training. Raises InvalidRequest."""
    plain = [
        {name: value for name, value in task.to_json().items() if name not in task.inference_fields} for task in tasks
    ]
    differ = [name for name, content in zip(names, plain, strict=True) if content != plain[0]]
    if differ:
        fields = sorted({key for content in plain for key in content if content[key] != plain[0].get(key)})
        raise InvalidRequest(
            f"{names[0]} and {', '.join(differ)} have different tasks ({', '.join(fields)}), so that their answers "
            "have no mean; ask them one by one",
            "model",
        )
    return tasks[0]
