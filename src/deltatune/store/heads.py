"""Heads in an adapter's folder, each kind built again by the entry point of `deltatune.heads` that it names; and the
head of an adapter that is made of others.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from deltatune.core.adapter import Adapter
from deltatune.core.errors import DeltatuneError, nearest


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


def combined_head(
    adapters: Mapping[str, Adapter], weights: Mapping[str, float], choice: str | Literal[False] | None
) -> tuple[nn.Module | Literal[False] | None, dict[str, Tensor], str | None]:
    """The head of an adapter made of several: what to attach, its tensors, and the adapter whose task it is.

    `choice`: an adapter's name, `"mean"`, False for none, or None where at most one has a head.
    """
    heads = {name: _head_tensors(adapter) for name, adapter in adapters.items()}
    holders = [name for name, tensors in heads.items() if tensors]
    if choice is False or (choice is None and not holders):
        return False, {}, None
    if choice is None:
        if len(holders) > 1:
            raise DeltatuneError(
                f"{', '.join(map(repr, holders))} have a head each; say whose to take, head={holders[0]!r}, "
                "head='mean' for the weighted mean, or head=False for none"
            )
        choice = holders[0]
    if choice in holders:
        return _copied(adapters[choice]), heads[choice], choice
    if choice == "mean" and holders:
        return _copied(adapters[holders[0]]), _mean(adapters, heads, weights, holders), holders[0]
    have = ", ".join(holders) or "none"
    raise DeltatuneError(f"head={choice!r}{nearest(choice, [*holders, 'mean'])}: adapters that have one: {have}")


def _head_tensors(adapter: Adapter) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in adapter.tensors().items() if key.startswith("head.")}


def _copied(adapter: Adapter) -> nn.Module | None:
    """A head of its own for the new adapter; None for copies of the model's."""
    return copy.deepcopy(adapter.head)


def _mean(
    adapters: Mapping[str, Adapter],
    heads: Mapping[str, Mapping[str, Tensor]],
    weights: Mapping[str, float],
    holders: list[str],
) -> dict[str, Tensor]:
    """The mean of heads of one shape and one task, by the adapters' weights."""
    first, *others = holders
    for other in others:
        shapes = [{key: tensor.shape for key, tensor in heads[name].items()} for name in (first, other)]
        if shapes[0] != shapes[1] or type(adapters[first].head) is not type(adapters[other].head):
            raise DeltatuneError(f"the heads of {first!r} and {other!r} differ in shape; take one by its name")
        if adapters[first].extra.get("task") != adapters[other].extra.get("task"):
            raise DeltatuneError(f"{first!r} and {other!r} were trained for other tasks; take one head by its name")
    total = sum(weights[name] for name in holders)
    if not total > 0:
        raise DeltatuneError(f"the weights of the heads sum to {total:g}, which gives no mean; take one by its name")
    return {key: sum(weights[n] / total * heads[n][key] for n in holders) for key in heads[first]}  # type: ignore[misc]
