"""Seed tasks: what people wrote, from rows to tasks that prompts can show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltatune.core.errors import nearest, raise_all

Row = dict[str, Any]
SHOWN = 5
"""Problems of one kind that an error lists."""


@dataclass(frozen=True)
class Example:
    """What is given and what is answered."""

    input: str
    output: str


@dataclass(frozen=True)
class Task:
    """An instruction with its first example."""

    instruction: str
    example: Example
    classification: bool | None = None
    """Whether it is answered by one of a few labels; None where the row does not say."""


def seed_tasks(rows: Sequence[Mapping[str, Any]]) -> list[Task]:
    """Tasks of rows with `instruction`, `output`, and maybe `input` and `is_classification`.

    Self-Instruct's own form, with a list of `instances`, is read too; the first one is taken. Raises DeltatuneError
    listing the rows that are no task.
    """
    problems, tasks = [], []
    for number, row in enumerate(rows, 1):
        flat = _flat(row)
        wrong = _problem(flat)
        if wrong:
            problems.append(f"row {number} {wrong}")
        else:
            tasks.append(task_of(flat))
    more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
    about = 'seeds are rows such as {"instruction": "...", "input": "...", "output": "..."}:'
    raise_all([*problems[:SHOWN], *more], about if problems else "")
    raise_all([] if tasks else ["there are no seed tasks: give some rows with instruction and output"])
    return tasks


def task_of(row: Mapping[str, Any]) -> Task:
    """The task of a checked row."""
    kind = row.get("is_classification")
    example = Example(str(row.get("input") or "").strip(), row["output"].strip())
    return Task(" ".join(row["instruction"].split()), example, kind)


def _flat(row: Mapping[str, Any]) -> Mapping[str, Any]:
    instances = row.get("instances")
    first = instances[0] if isinstance(instances, list) and instances else None
    return {**row, **first} if isinstance(first, Mapping) else row


def _problem(row: Mapping[str, Any]) -> str | None:
    for name in ("instruction", "output"):
        value = row.get(name)
        if not isinstance(value, str):
            have = ", ".join(map(str, row)) or "none"
            return f"has no text in column {name!r}{nearest(name, map(str, row))}; its columns: {have}"
        if not value.strip():
            return f"has an empty {name}"
    if not isinstance(row.get("input"), str | None):
        return f"has a {type(row['input']).__name__} as input; it must be a text"
    if not isinstance(row.get("is_classification"), bool | None):
        return f"has is_classification={row['is_classification']!r}; it must be true or false"
    return None
