"""A file, a folder, a hub name or the built-in data -> checked rows in three splits, for every task."""

from deltatune.data.checks import problems, remarks
from deltatune.data.dataset import Data, LabelKind, Row, TaskName
from deltatune.data.formats import read_rows
from deltatune.data.layouts import examples, inputs
from deltatune.data.read_data import read

__all__ = [
    "Data",
    "LabelKind",
    "Row",
    "TaskName",
    "examples",
    "inputs",
    "problems",
    "read",
    "read_rows",
    "remarks",
]
