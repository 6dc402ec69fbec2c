"""From a file, a folder, a hub name or nothing at all to rows in three splits, for every task."""

from deltatune.data.checks import problems, remarks
from deltatune.data.formats import Row, read_rows
from deltatune.data.kinds import Kind, Task
from deltatune.data.reading import look, read
from deltatune.data.shaping import examples, inputs
from deltatune.data.splits import Data

__all__ = ["Data", "Kind", "Row", "Task", "examples", "inputs", "look", "problems", "read", "read_rows", "remarks"]
