"""Rows of a file -> rows of one task: a module for each kind of task, with its conversion and its checks."""

from __future__ import annotations

from deltatune.data.dataset import TaskName
from deltatune.data.layouts import classification_rows, generation_rows, qa_rows, tagging_rows, text_rows
from deltatune.data.layouts.layout import Layout

__all__ = ["LAYOUTS"]

LAYOUTS: dict[TaskName, Layout] = {
    "classify": classification_rows.LAYOUT,
    "regression": classification_rows.LAYOUT,
    "tag": tagging_rows.LAYOUT,
    "span": qa_rows.LAYOUT,
    "generate": generation_rows.LAYOUT,
    "lm": text_rows.LAYOUT,
}
"""The layout of each task's rows."""
