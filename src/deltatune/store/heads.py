"""Heads in an adapter's folder: each kind is built again by the entry point of `deltatune.heads` that it names."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from torch import nn

from deltatune.core.errors import DeltatuneError


def head_to_json(head: nn.Module | None) -> dict[str, Any] | None:
    """What a head is built from again: its `kind` and `config`; a module of the user's own leaves its class name."""
    if head is None:
        return None
    kind, config = getattr(head, "kind", None), getattr(head, "config", None)
    if kind is None or config is None:
        return {"kind": "own", "class": f"{type(head).__module__}.{type(head).__qualname__}"}
    return {"kind": kind, "config": config.to_json()}


def head_from_json(content: dict[str, Any] | None, given: nn.Module | None, folder: Path) -> nn.Module | None:
    """Build a stored head. Raises DeltatuneError where only the user can: a module of their own, an unknown kind."""
    if content is None:
        return None
    if content["kind"] == "own":
        if given is None:
            raise DeltatuneError(
                f"{folder} has a head of class {content['class']}; load it with head={content['class']}(...)"
            )
        return given
    builders = {point.name: point for point in entry_points(group="deltatune.heads")}
    if content["kind"] not in builders:
        raise DeltatuneError(
            f"{folder} has a head of kind {content['kind']!r}, known here: {', '.join(builders) or 'none'}"
        )
    built: nn.Module = builders[content["kind"]].load()(content["config"])
    return built
