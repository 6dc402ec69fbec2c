"""Everything that is to be said of data, by their kind."""

from __future__ import annotations

from deltatune.data.checks import classes, common
from deltatune.data.splits import Data


def problems(data: Data) -> list[str]:
    """Everything that makes training or scoring on `data` impossible or meaningless, one sentence each."""
    return (
        classes.problems(data)
        if data.kind in ("classes", "number", "many")
        else common.too_few(data, 1 if data.kind == "raw" else common.FEWEST_ROWS)
    )


def remarks(data: Data) -> list[str]:
    """What makes a score on `data` mean less than it seems, one sentence each."""
    return classes.remarks(data) if data.kind in ("classes", "number", "many") else []
