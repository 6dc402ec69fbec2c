"""An adapter as a folder: adapter.json, adapter.safetensors, a manifest, and PEFT's files if PEFT can hold it.

A head is stored by its `kind`, which names the entry point of `deltatune.heads` that builds it again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache, partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.host import Host
from deltatune.core.input_validation.field_validation import shortened
from deltatune.core.input_validation.regular_files import check_directory
from deltatune.core.input_validation.strict_json import dumps
from deltatune.core.method import Method, hyperparameters
from deltatune.core.registry import find_method
from deltatune.core.trained_rows import TrainedRows, hashes_from
from deltatune.core.union import Union
from deltatune.store.atomic_files import check_folder, read_json, write_folder, write_json
from deltatune.store.config_checks import contradictions, wrong_entries
from deltatune.store.fingerprint import identity_for, reads_body
from deltatune.store.mapped_tensors import map_tensors
from deltatune.store.model_saving import adapter_hub, hosted_folder
from deltatune.store.model_saving.classifier_model import classifier_model
from deltatune.store.peft.peft_folder import write_peft
from deltatune.store.peft.pipelines.lora_file import write_diffusers
from deltatune.store.stored_adapter import StoredAdapter
from deltatune.store.tensors import check_tensors, read_tensors, write_tensors

SCHEMA = 1
CONFIG, TENSORS, ROWS = "adapter.json", "adapter.safetensors", "trained_rows.safetensors"


_head_shapes: dict[str, dict[str, tuple[int, ...]]] = {}
"""Shapes of the tensors of heads by their kind and config, because a thousand adapters have few different heads."""


def save(host: Host, name: str, folder: Path, extra: Mapping[str, Any]) -> None:
    """Write one adapter atomically. Raises DeltatuneError for tensors that are empty or not finite."""
    attached = host.adapters[name]
    training = bool(extra.get("training"))
    stored_extra = {**attached.extra, **{key: value for key, value in extra.items() if key != "training"}}
    adapter = attached if training else attached.without_reparametrisation()
    tensors = adapter.tensors()
    check_tensors(tensors, name)
    prefix = host.sites.facts.prefix if reads_body(host, name) else ""
    config = {
        "schema": SCHEMA,
        "method": method_to_json(adapter.method),
        "text": repr(adapter.method),
        "seed": adapter.seed,
        "sites": {key: site.module.removeprefix(prefix) for key, site in adapter.sites.items()},
        "own_head": any(site.kind == "head" for site in adapter.sites.values()),
        "head": head_to_json(adapter.head),
        "base": identity_for(host, name),
        "training": training,
        "extra": stored_extra,
    }

    def fill(work: Path) -> None:
        write_json(work / CONFIG, config)
        write_tensors(work / TENSORS, tensors)
        if not training:
            write_peft(host, adapter, work)
            write_diffusers(host, adapter, work)
            if adapter.trained_rows is not None and (len(adapter.trained_rows.train) or not tensors):
                _write_trained_rows(work / ROWS, adapter.trained_rows)

    write_folder(folder, fill)


def save_hosted(host: Host, folder: Path, base_options: Mapping[str, Any] | None) -> None:
    """Write all adapters of a host, as `save_pretrained` of its model does (`model_saving.hosted_folder`)."""
    hosted_folder.save_hosted(host, folder, base_options)


def read_hosted(folder: Path) -> Mapping[str, Tensor]:
    """The tensors of the adapters in a folder of `save_hosted`, by the names of the model's state dict."""
    return read_tensors(folder / hosted_folder.STATE)


def find(folder: str, name: str | None, revision: str | None) -> tuple[Path, str]:
    """The folder of an adapter on this machine and a name for it, as `Host.load` takes them.

    `folder` may be a name on the hub, from which it is fetched, and a folder that `save_pretrained` wrote of a model
    with adapters. Raises DeltatuneError where there is none.
    """
    place, default = adapter_hub.local_folder(folder, revision)
    if hosted_folder.is_hosted(place) and not knows(place):
        return hosted_folder.adapter_in(place, name)
    return place, name or default


def push(host: Host, name: str, repo_id: str, options: Mapping[str, Any]) -> str:
    """Upload an adapter to the hub (`model_saving.adapter_hub`)."""
    return adapter_hub.push(host, name, repo_id, options)


def plain_model(host: Host, name: str) -> nn.Module:
    """The base, with an adapter merged into it, and its head as a classifier (`model_saving.classifier_model`)."""
    return classifier_model(host, name)


def knows(folder: Path) -> bool:
    """Whether the folder holds an adapter in deltatune's format."""
    return os.path.lexists(folder / CONFIG)  # one that cannot be read is named when it is read


def load(host: Host, folder: Path, name: str, other_base: bool, head: nn.Module | None) -> None:
    """Attach the adapter of a folder. Raises DeltatuneError as `read_stored` and `StoredAdapter.attach_to` do."""
    read_stored(folder).attach_to(host, name, other_base, head)


def read_stored(folder: Path, verified: bool = False) -> StoredAdapter:
    """Read the adapter of a folder without a model; no module is built but its head, where it is used.

    The values of its tensors stay in the file until they are copied. `verified`: its files are known to be those of
    its manifest, and its values to be finite. Raises DeltatuneError for a folder that is incomplete or damaged.
    """
    config = read_config(folder, verified)
    method = method_from_json(config["method"], folder)
    tensors = map_tensors(folder / TENSORS)
    return StoredAdapter(
        folder,
        method,
        tensors,
        own_head=config["own_head"],
        make_head=partial(_make_head, config["head"], folder),
        seed=config["seed"],
        extra=config["extra"],
        base=config["base"],
        sites=config.get("sites"),
        trained_rows=_read_trained_rows(folder / ROWS),
        problems=contradictions(config, method),
        misshapen_head=_misshapen_head(config["head"], tensors, folder),
        finite=verified,
    )


def _write_trained_rows(path: Path, rows: TrainedRows) -> None:
    """Write the hashes of the rows that an adapter was trained on, 8 bytes a row; none for a prompt without tensors."""
    hashes = {"train": rows.train, "validation": rows.validation}
    tensors = {name: torch.from_numpy(values.view(np.int64)) for name, values in hashes.items()}
    write_tensors(path, {**tensors, "complete": torch.tensor([rows.complete])})


def _read_trained_rows(path: Path) -> TrainedRows | None:
    """The rows that an adapter was trained on; None in folders that do not say."""
    if not path.is_file():
        return None
    tensors = read_tensors(path)
    missing = [name for name in ("train", "validation", "complete") if name not in tensors]
    raise_all([f"{path} lacks {name!r}; the file is damaged" for name in missing])
    train, validation = (hashes_from(tensors[name].numpy(), str(path)) for name in ("train", "validation"))
    return TrainedRows(train, validation, bool(tensors["complete"].all()))


def read_config(folder: Path, verified: bool = False) -> dict[str, Any]:
    """Check the files of a folder, unless they are `verified` already, and read `adapter.json`."""
    if not verified:
        check_directory(folder, "adapter")
        check_folder(folder, (CONFIG, TENSORS))
    config = read_json(folder / CONFIG)
    if config.get("schema") != SCHEMA:
        raise DeltatuneError(
            f"{folder} has schema {config.get('schema')!r}, this deltatune reads {SCHEMA}; update deltatune"
        )
    missing = [key for key in ("method", "seed", "own_head", "head", "base", "extra") if key not in config]
    raise_all([f"{key!r} is missing" for key in missing], f"{folder / CONFIG} is incomplete:" if missing else "")
    wrong = wrong_entries(config)
    raise_all(wrong, f"{folder / CONFIG} is damaged:" if wrong else "")
    return config


# ---- methods


def method_to_json(method: Method) -> Any:
    """All fields of a method, defaults included, so that later defaults cannot change its meaning."""
    if isinstance(method, Union):
        return [method_to_json(part) for part in method.members]
    return {
        "name": type(method).__name__,
        **{name: _value_to_json(value) for name, value in hyperparameters(method).items()},
    }


def _value_to_json(value: Any) -> Any:
    """A field's value as JSON; a method is stored under the key `method`."""
    if isinstance(value, Method):
        return {"method": method_to_json(value)}
    return [_value_to_json(item) for item in value] if isinstance(value, tuple) else value


def method_from_json(content: Any, folder: Path) -> Method:
    """Build a stored method. Raises DeltatuneError for unknown methods or options."""
    if isinstance(content, list):
        parts = [method_from_json(part, folder) for part in content]
        return Union(tuple(parts))
    if not isinstance(content, dict) or not isinstance(content.get("name"), str):
        raise DeltatuneError(
            f"{folder / CONFIG} is damaged: the method {shortened(content)} must be an object with a name"
        )
    options = dict(content)
    name = options.pop("name")
    maker = find_method(name)
    if not isinstance(maker, type):
        raise DeltatuneError(
            f"{folder} holds a {shortened(name, quoted=False)} adapter, but that method is not installed; "
            "install its package"
        )
    unknown = [option for option in options if option not in hyperparameters(maker)]
    if unknown:
        raise DeltatuneError(f"{folder} uses unknown options of {name}: {', '.join(unknown)}; update deltatune")
    try:
        method: Method = maker(**{name: _value_from_json(value, folder) for name, value in options.items()})
    except (TypeError, AttributeError) as error:  # values that the method's own checks do not expect
        raise DeltatuneError(f"{folder / CONFIG} is damaged: {name} cannot have its options ({error})") from None
    return method


def _value_from_json(value: Any, folder: Path) -> Any:
    if isinstance(value, dict) and set(value) == {"method"}:
        return method_from_json(value["method"], folder)
    return tuple(_value_from_json(item, folder) for item in value) if isinstance(value, list) else value


# ---- heads


def head_to_json(head: nn.Module | None) -> dict[str, Any] | None:
    """The `kind` and `config` that build a head again; of a module of the user's own, its class name."""
    if head is None:
        return None
    kind, config = getattr(head, "kind", None), getattr(head, "config", None)
    if kind is None or config is None:
        return {"kind": "own", "class": f"{type(head).__module__}.{type(head).__qualname__}"}
    return {"kind": kind, "config": config.to_json()}


def head_from_json(content: dict[str, Any] | None, given: nn.Module | None, folder: Path) -> nn.Module | None:
    """Build a stored head. Raises DeltatuneError for unknown kinds, and if a module of the user's own is not given."""
    if content is None:
        return None
    if content["kind"] == "own":
        if given is None:
            raise DeltatuneError(
                f"{folder} has a head of class {content['class']}; load it with head={content['class']}(...)"
            )
        return given
    builders = _head_builders()
    if content["kind"] not in builders:
        raise DeltatuneError(
            f"{folder} has a head of kind {content['kind']!r}; installed kinds: {', '.join(builders) or 'none'}"
        )
    try:
        head: nn.Module = builders[content["kind"]].load()(content["config"])
    except (TypeError, KeyError, AttributeError) as error:
        raise DeltatuneError(f"{folder / CONFIG} is damaged: its head cannot be built ({error})") from None
    return head


@cache
def _head_builders() -> dict[str, EntryPoint]:
    """The entry points of heads by kind; found once, because the files of all packages are read for it."""
    return {point.name: point for point in entry_points(group="deltatune.heads")}


def _make_head(content: dict[str, Any] | None, folder: Path, given: nn.Module | None) -> nn.Module | None:
    return head_from_json(content, given, folder)


def _misshapen_head(content: dict[str, Any] | None, tensors: Mapping[str, Tensor], folder: Path) -> list[str]:
    """List tensors of a head whose shapes in the file are not those of its config, found without memory for them."""
    if content is None or content["kind"] == "own":
        return []
    key = dumps(content, folder, sort_keys=True)
    if key not in _head_shapes:
        with torch.device("meta"):
            try:
                head = head_from_json(content, None, folder)
            except (RuntimeError, OverflowError):  # more bytes than 64 bits can count
                return [f"the head's config {shortened(content['config'])} makes tensors that no memory can hold"]
        assert head is not None
        if len(_head_shapes) >= 1000:
            _head_shapes.clear()
        _head_shapes[key] = {f"head.{name}": tuple(tensor.shape) for name, tensor in head.state_dict().items()}
    shapes = _head_shapes[key]
    in_file = {key: tuple(tensor.shape) for key, tensor in tensors.items() if key.startswith("head.")}
    return [
        f"tensor {key} has shape {in_file[key]} in the file, {shapes[key]} by the head's config"
        for key in sorted(shapes.keys() & in_file.keys())
        if shapes[key] != in_file[key]
    ]
