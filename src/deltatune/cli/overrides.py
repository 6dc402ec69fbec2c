"""`--set NAME=VALUE`: single fields of a task or an objective."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from deltatune.core.errors import DeltatuneError, nearest, raise_all

if TYPE_CHECKING:
    from deltatune.tasks import Task


def field_of(text: str) -> tuple[str, Any]:
    """Name and value; what is no Python literal is a word. Raises DeltatuneError where there is no =."""
    name, sign, value = text.partition("=")
    if not sign:
        raise DeltatuneError(f"--set {text}: NAME=VALUE is needed, such as --set max_length=128")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def answering(task: Task, given: Sequence[str] | None) -> Task:
    """A trained task that answers in another way; what it was trained with cannot be set."""
    fields = dict(map(field_of, given or ()))
    known = getattr(task, "at_use", ())
    none = "this task has nothing to set" if not known else f"what can be set: {', '.join(known)}"
    raise_all([f"--set {name}: it is no choice once the adapter is trained{nearest(name, known)}; {none}"
               for name in fields if name not in known])  # fmt: skip
    return replace(task, **fields) if fields else task  # type: ignore[type-var]
