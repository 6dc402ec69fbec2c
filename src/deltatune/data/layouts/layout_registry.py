"""What gives the rows of one split the shape of their task."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from deltatune.data.formats.files import Row
from deltatune.data.layouts import generation_rows as written
from deltatune.data.layouts import qa_rows as spans
from deltatune.data.layouts import tagging_rows as tags
from deltatune.data.layouts import text_rows as raw
from deltatune.data.layouts.layout import Shaped
from deltatune.data.task_types import Task

SHAPES: dict[Task, Callable[[Sequence[Row], str, Sequence[str], str | None], Shaped]] = {
    "tag": tags.shape,
    "span": spans.shape,
    "generate": written.shape,
    "lm": raw.shape,
}
"""(rows, name of the split, text columns, label column or None) -> the rows that can be used and what is wrong."""
