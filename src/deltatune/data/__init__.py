"""From a file, a folder, a hub name or nothing at all to labelled rows in three splits."""

from deltatune.data.checks import problems, remarks
from deltatune.data.formats import Row, read_rows
from deltatune.data.reading import read
from deltatune.data.splits import Data

__all__ = ["Data", "Row", "problems", "read", "read_rows", "remarks"]
