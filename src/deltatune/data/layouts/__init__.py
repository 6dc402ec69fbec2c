"""Rows of a file -> rows of one task: a module for each kind of task, with its conversion and its checks.

`read` converts the rows of a source; `inputs` converts other rows to predict, `examples` converts other rows to score.
"""

from __future__ import annotations

from collections.abc import Sequence

from deltatune.core.errors import nearest, raise_all
from deltatune.data.columns.choose_columns import Columns
from deltatune.data.columns.column_names import CHATS, MESSAGES, REFERENCES
from deltatune.data.dataset import TASK_OF, LabelKind, Row, TaskName, columns_of
from deltatune.data.layouts import (
    classification_rows,
    generation_rows,
    picture_rows,
    preference_rows,
    qa_rows,
    tagging_rows,
    text_rows,
)
from deltatune.data.layouts.layout import Layout
from deltatune.data.published.forms import with_plain_columns

__all__ = ["LAYOUTS", "examples", "inputs"]

LAYOUTS: dict[TaskName, Layout] = {
    "classify": classification_rows.LAYOUT,
    "regression": classification_rows.LAYOUT,
    "tag": tagging_rows.LAYOUT,
    "span": qa_rows.LAYOUT,
    "generate": generation_rows.LAYOUT,
    "lm": text_rows.LAYOUT,
    "prefer": preference_rows.LAYOUT,
    "image": picture_rows.LAYOUT,
}
"""The layout of each task's rows."""


def examples(rows: Sequence[Row], kind: LabelKind, text: Sequence[str], label: str) -> list[Row]:
    """Labelled rows in the form that the rows of `read` have, none held out: to score a model with.

    Raises DeltatuneError naming columns that are missing and rows that cannot be used.
    """
    rows = with_plain_columns(_with_messages(rows, text), [*text, *([label] if label else [])], "rows")
    needs_label = label and not (kind == "text" and REFERENCES in columns_of(rows))
    _require(rows, [*text, *([label] if needs_label else [])])
    converted = LAYOUTS[TASK_OF[kind]].convert({"rows": list(rows)}, Columns(tuple(text), label), (kind,))
    raise_all(converted.problems)
    return converted.splits["rows"]


def inputs(rows: Sequence[Row], task: TaskName, text: Sequence[str]) -> list[Row]:
    """Unlabelled rows in the form that the rows of `read` have: to predict.

    Raises DeltatuneError naming columns that are missing and rows that cannot be used.
    """
    if task in ("classify", "regression"):
        return list(rows)
    rows = with_plain_columns(_with_messages(rows, text), text, "rows", several=False)
    _require(rows, text)
    converted = LAYOUTS[task].convert_rows(rows, "rows", text, None)
    raise_all(converted.problems)
    return converted.rows


def _with_messages(rows: Sequence[Row], text: Sequence[str]) -> list[Row]:
    """Rows with their chats in `messages`, whatever their file calls the column; other rows unchanged."""
    names = columns_of(rows)
    column = next((name for name in CHATS if name in names), MESSAGES)
    if tuple(text) != (MESSAGES,) or column == MESSAGES:
        return list(rows)
    return [{MESSAGES if name == column else name: value for name, value in row.items()} for row in rows]


def _require(rows: Sequence[Row], columns: Sequence[str]) -> None:
    """Raise DeltatuneError for columns that no row has."""
    names = columns_of(rows)
    raise_all(
        [
            f"there is no column {name!r}{nearest(name, names) or '.'} The columns are: {', '.join(names)}."
            for name in columns
            if name not in names
        ]
    )
