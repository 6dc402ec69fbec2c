"""Keys that stand beside `adapters` in a recipe: each adapter has them unless it sets its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MERGED = ("settings", "task", "head", "data")
"""Sections of which an adapter may set single keys; of others its own takes the place of the shared one, and so do
data that name a source."""
INSTEAD = {
    "mixture": ("data", "task"),
    "data": ("mixture",),
    "objective": ("task", "head"),
    "epochs": ("max_steps",),
    "max_steps": ("epochs",),
}
"""What a key of an adapter's own takes the place of, beside the shared one of its name."""


def spread(content: Any, keys: Sequence[str]) -> Any:
    """A recipe's content with the shared ones of these keys in each of its `adapters`, and no longer beside them.

    Raises ValueError for shared keys of which every adapter has its own, so that they would not be used.
    """
    adapters = content.get("adapters") if isinstance(content, Mapping) else None
    if not isinstance(adapters, Mapping) or not adapters:
        return content
    shared = {key: content[key] for key in keys if key in content}
    own = {name: {} if given is None else given for name, given in adapters.items()}
    readable = all(isinstance(given, Mapping) for given in own.values())
    idle = _idle(shared, list(own.values())) if readable else []
    if idle:
        raise ValueError(f"every adapter has its own {', '.join(idle)}: leave that out beside adapters")
    whole = {name: _merged(shared, given) if isinstance(given, Mapping) else given for name, given in own.items()}
    return {**{key: value for key, value in content.items() if key not in shared}, "adapters": whole}


def own_location(location: tuple[Any, ...], content: Mapping[str, Any], is_missing: bool) -> tuple[Any, ...]:
    """Where a value that pydantic found in an adapter was written: there, or beside `adapters` for all of them.

    is_missing: whether the last key is one that is not there.
    """
    if location[:1] != ("adapters",) or len(location) < 3:
        return location
    written = location[:-1] if is_missing else location
    return location[2:] if not _reaches(content, written) and _reaches(content, written[2:]) else location


def _reaches(content: Any, location: Sequence[Any]) -> bool:
    for key in location:
        if not (isinstance(content, Mapping) and key in content):
            return False
        content = content[key]
    return bool(location)


def _idle(shared: Mapping[str, Any], own: Sequence[Mapping[str, Any]], prefix: str = "") -> list[str]:
    """The shared keys that no adapter takes, also within sections."""
    idle = []
    for key, value in shared.items():
        open_to = [given for given in own if not any(key in INSTEAD.get(name, ()) for name in given)]
        below = [given[key] for given in open_to if key in given]
        if not open_to or (len(below) == len(open_to) and not _are_merged(key, value, below)):
            idle.append(prefix + key)
        elif len(below) == len(open_to):
            idle += _idle(_section(key, value), below, f"{prefix}{key}.")
    return idle


def _are_merged(key: str, shared: Any, own: Sequence[Any]) -> bool:
    if key == "data" and any(isinstance(value, Mapping) and "source" in value for value in own):
        return False
    return key in MERGED and all(isinstance(value, Mapping) for value in [_section(key, shared), *own])


def _section(key: str, value: Any) -> Any:
    """A section as a mapping: data may be a source alone."""
    return {"source": value} if key == "data" and isinstance(value, str) else value


def _merged(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The shared keys with an adapter's own in their place."""
    replaced = {name for key in own for name in INSTEAD.get(key, ())}
    merged = {key: value for key, value in shared.items() if key not in replaced} | dict(own)
    for key in MERGED:
        if key not in replaced and _are_merged(key, shared.get(key), [own.get(key)]):
            merged[key] = _merged(_section(key, shared[key]), own[key])
    return merged
