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
from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.core.host import Host
from deltatune.core.method import Method, fields_of
from deltatune.core.registry import registry
from deltatune.core.union import Union
from deltatune.store.atomic_files import check_folder, read_json, write_folder, write_json
from deltatune.store.fingerprint import base_identity, compare_bases
from deltatune.store.peft.peft_folder import write_peft
from deltatune.store.tensors import attach_filled, check_tensors, read_tensors, write_tensors


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


SCHEMA = 1
CONFIG, TENSORS = "adapter.json", "adapter.safetensors"


def save(host: Host, name: str, folder: Path, extra: Mapping[str, Any]) -> None:
    """Write one adapter; the folder appears whole or not at all. Refuses tensors that are empty or not finite."""
    live = host.adapters[name]
    training = bool(extra.get("training"))
    kept = {**live.extra, **{key: value for key, value in extra.items() if key != "training"}}
    adapter = live if training else live.finished()
    tensors = adapter.tensors()
    check_tensors(tensors, name)
    config = {
        "schema": SCHEMA,
        "method": method_to_json(adapter.method),
        "text": repr(adapter.method),
        "seed": adapter.seed,
        "sites": {key: site.module for key, site in adapter.sites.items()},
        "own_head": any(site.kind == "head" for site in adapter.sites.values()),
        "head": head_to_json(adapter.head),
        "base": base_identity(host),
        "training": training,
        "extra": kept,
    }

    def fill(work: Path) -> None:
        write_json(work / CONFIG, config)
        write_tensors(work / TENSORS, tensors)
        if not training:
            write_peft(host, adapter, work)

    write_folder(folder, fill)


def knows(folder: Path) -> bool:
    """Whether the folder holds an adapter of ours."""
    return (folder / CONFIG).is_file()


def load(host: Host, folder: Path, name: str, other_base: bool, head: nn.Module | None) -> None:
    """Attach the adapter of a folder. Strict: one error lists all that is missing, extra, misshapen or foreign."""
    config = read_config(folder)
    raise_all(compare_bases(config["base"], host, other_base), f"adapter {folder} does not fit this model:")
    method = method_from_json(config["method"], folder)
    tensors = read_tensors(folder / TENSORS)
    kept = head_from_json(config["head"], head, folder)
    attach_filled(
        host,
        name,
        method,
        tensors,
        f"adapter {folder} does not fit this model:",
        seed=config["seed"],
        head=kept or (None if config["own_head"] else False),
        extra=config["extra"],
    )


def read_config(folder: Path) -> dict[str, Any]:
    """Read and check `adapter.json` of a folder whose files are whole."""
    check_folder(folder)
    config = read_json(folder / CONFIG)
    if config.get("schema") != SCHEMA:
        raise DeltatuneError(
            f"{folder} has schema {config.get('schema')!r}, this deltatune reads {SCHEMA}; update deltatune"
        )
    missing = [key for key in ("method", "seed", "own_head", "head", "base", "extra") if key not in config]
    raise_all([f"{key!r} is missing" for key in missing], f"{folder / CONFIG} is incomplete:" if missing else "")
    return config


def method_to_json(method: Method) -> Any:
    """All fields of a method, defaults included, so that later defaults cannot change its meaning."""
    if isinstance(method, Union):
        return [method_to_json(part) for part in method.members]
    return {"name": type(method).__name__, **{name: _plain(value) for name, value in fields_of(method).items()}}


def _plain(value: Any) -> Any:
    """A field's value as JSON; methods among them under the key `method`."""
    if isinstance(value, Method):
        return {"method": method_to_json(value)}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def method_from_json(content: Any, folder: Path) -> Method:
    """Read a method back. Raises DeltatuneError for methods or options that are not known here."""
    if isinstance(content, list):
        parts = [method_from_json(part, folder) for part in content]
        return Union(tuple(parts))
    options = dict(content)
    name = options.pop("name", None)
    maker = registry().get(str(name))
    if maker is None:
        raise DeltatuneError(
            f"{folder} holds a {name} adapter, a method that is not installed here; install its package"
        )
    unknown = [option for option in options if option not in fields_of(maker)]  # type: ignore[arg-type]
    if unknown:
        raise DeltatuneError(f"{folder} uses options {name} does not have here: {', '.join(unknown)}; update deltatune")
    return maker(**{name: _from_plain(value, folder) for name, value in options.items()})


def _from_plain(value: Any, folder: Path) -> Any:
    if isinstance(value, dict) and set(value) == {"method"}:
        return method_from_json(value["method"], folder)
    return tuple(_from_plain(item, folder) for item in value) if isinstance(value, list) else value
