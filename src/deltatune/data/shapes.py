"""What gives the rows of one split the shape of their task."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from deltatune.data import raw, spans, tags, written
from deltatune.data.formats import Row
from deltatune.data.kinds import Task
from deltatune.data.shaped import Shaped

SHAPES: dict[Task, Callable[[Sequence[Row], str, Sequence[str], str | None], Shaped]] = {
    "tag": tags.shape,
    "span": spans.shape,
    "generate": written.shape,
    "lm": raw.shape,
}
"""(rows, name of the split, text columns, label column or None) -> the rows that can be used and what is wrong."""
