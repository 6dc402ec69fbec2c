"""Our folder: `adapter.json` (method, sites, base, task), `adapter.safetensors` (tensors), `manifest.json` (hashes).

Where HF PEFT can hold the adapter, the folder has PEFT's two files too, so that `PeftModel.from_pretrained` opens it
as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.host import Host
from deltatune.core.method import Method, Union, fields_of
from deltatune.core.text import registry
from deltatune.store.atomic import check_folder, read_json, write_folder, write_json
from deltatune.store.fingerprint import base_identity, compare_bases
from deltatune.store.heads import head_from_json, head_to_json
from deltatune.store.peft.writing import write_peft
from deltatune.store.tensors import attach_filled, check_tensors, read_tensors, write_tensors

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
