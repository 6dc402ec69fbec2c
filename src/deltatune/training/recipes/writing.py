"""A resolved recipe as a file."""

from __future__ import annotations

import dataclasses
from typing import Any

import yaml
from pydantic import BaseModel

from deltatune.training.recipes.schema import Part, Rows, Run


def as_yaml(recipe: Part) -> str:
    """All that a recipe says, defaults and overrides in it, as a file that reads back equal.

    What is not set and has no default is left out.
    """
    found: str = yaml.safe_dump(_plain(recipe), sort_keys=False, allow_unicode=True, width=100, default_flow_style=None)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Rows):
        return _kept(value, list(Rows.model_fields))
    if isinstance(value, BaseModel):
        return _kept(value, _used(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        # of the two that say how long, the one that counts
        names.remove("epochs" if value.max_steps is not None else "max_steps")  # type: ignore[attr-defined]
        return _kept(value, names)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _kept(value: Any, names: list[str]) -> dict[str, Any]:
    found = {name: _plain(getattr(value, name)) for name in names}
    return {name: item for name, item in found.items() if item is not None and item != [] and item != {}}


def _used(part: BaseModel) -> list[str]:
    """Words of a part in the order of its class, its own first; those of a training only where something is trained."""
    names = list(type(part).model_fields)
    own = [name for name in names if name not in Run.model_fields]
    if not isinstance(part, Run):
        return names
    before = [name for name in own if name not in ("stages", "measure", "merge")]
    last = [name for name in own if name not in before]
    if getattr(part, "stages", None):
        return [*before, *reversed(last)]
    if getattr(part, "vocabulary", None):
        return ["name", "data", "vocabulary"]
    return [*before, *Run.model_fields, *last]
