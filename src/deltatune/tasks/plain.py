"""What all tasks do alike: read columns of rows, list what is wrong, become plain data and come back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, asdict, fields
from typing import Any, TypeVar

from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.tasks.task import Row

SHOWN = 5
"""How many bad rows an error lists before it counts the rest."""

T = TypeVar("T")


def raise_listed(problems: list[str], after: str = "") -> None:
    """Raise one error with the first few problems, the number of the others, and a closing line."""
    if problems:
        more = [f"... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise DeltatuneError("\n".join([*problems[:SHOWN], *more, *([after] if after else [])]))


def column(rows: Sequence[Row], name: str) -> list[Any]:
    """The values of a column. Raises DeltatuneError naming the first row without it and the columns that row has."""
    for i, row in enumerate(rows):
        if name not in row:
            have = ", ".join(map(repr, row))
            raise DeltatuneError(f"no column {name!r} in row {i}{nearest(name, row)}; columns: {have}")
    return [row[name] for row in rows]


def text_column(rows: Sequence[Row], name: str) -> list[str]:
    """The values of a column of texts. Raises DeltatuneError listing the rows that hold something else."""
    values = column(rows, name)
    raise_listed(
        [f"row {i}: {name} is {value!r}, not a text" for i, value in enumerate(values) if not isinstance(value, str)]
    )
    return values


def to_plain(kind: str, task: Any) -> dict[str, Any]:
    """The fields of a task as plain data, and the kind under which it is found again."""
    return {"task": kind, **{name: list(v) if isinstance(v, tuple) else v for name, v in asdict(task).items()}}


def from_plain(cls: type[T], data: dict[str, Any]) -> T:
    """Read `to_plain`'s result. Raises DeltatuneError for missing and unknown fields."""
    known = fields(cls)  # type: ignore[arg-type]
    names = [field.name for field in known]
    given = {name: value for name, value in data.items() if name != "task"}
    problems = [f"the stored task lacks {name!r}" for name in names if name not in given]
    problems += [
        f"the stored task has {name!r}, which is unknown{nearest(name, names)}" for name in given if name not in names
    ]
    raise_all(problems)
    return cls(**given)


def default_of(cls: type[Any], name: str) -> Any:
    """A field's default."""
    found = next(field for field in fields(cls) if field.name == name)
    return None if found.default is MISSING else found.default
