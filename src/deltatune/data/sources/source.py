"""`Source`: what a file, a folder or a data set of the hub holds, before its columns are chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from deltatune.data.dataset import Splits


@dataclass(frozen=True)
class Source:
    """The splits of a source and what is known of their columns."""

    name: str
    """Short name for run folders."""
    origin: str
    """What was read, for the record."""
    splits: Splits
    """Rows by split name; "train" is always there. Further parts have names such as `test_mismatched`."""
    header: bool = False
    """Whether the column names are the first line of a file."""
    text: tuple[str, ...] = ()
    """The text columns, where the source fixes them."""
    label: str | None = None
    """The label column, where the source fixes it."""
    metric: str = ""
    """The metric with which data of this form are scored, where one is known."""
    class_names: tuple[str, ...] = ()
    """The columns whose class numbers the source names; their None is a label that nobody knows."""
    split_names: Mapping[str, str] = field(default_factory=dict)
    """Split -> its name in the source, where it has names of its own."""
    notes: tuple[str, ...] = ()
    """What is not used, one sentence each."""
