"""From a file, a folder, a hub name or nothing at all to rows in three splits, for every task."""

from deltatune.data.checks import problems, remarks
from deltatune.data.dataset import look, read
from deltatune.data.formats.files import Row, read_rows
from deltatune.data.layouts.convert import examples, inputs
from deltatune.data.splits import Data
from deltatune.data.task_types import Kind, Task

__all__ = ["Data", "Kind", "Row", "Task", "examples", "inputs", "look", "problems", "read", "read_rows", "remarks"]
