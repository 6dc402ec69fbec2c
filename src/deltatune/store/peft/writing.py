"""Writing an adapter as PEFT's two files: into our own folder where PEFT can hold it, or as a folder of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from deltatune.core.adapter import Adapter
from deltatune.core.errors import raise_all
from deltatune.core.host import Host
from deltatune.store.atomic import write_folder, write_json
from deltatune.store.peft.families import family_of, obstacles
from deltatune.store.peft.files import CONFIG, TENSORS, heads_of
from deltatune.store.tensors import check_tensors, write_tensors


def save(host: Host, name: str, folder: Path, extra: Mapping[str, Any]) -> None:
    """Write a folder of PEFT's files alone. Raises DeltatuneError with every reason why PEFT cannot hold it."""
    adapter = host.adapters[name].finished()
    found = _obstacles(host, adapter)
    raise_all(found, f"adapter {name!r} cannot be exported for PEFT:" if found else "")
    check_tensors(adapter.tensors(), name)
    write_folder(folder, lambda work: write_files(host, adapter, work))


def write_peft(host: Host, adapter: Adapter, folder: Path) -> None:
    """Write PEFT's files into a folder beside ours, if PEFT can hold the adapter."""
    if not _obstacles(host, adapter):
        write_files(host, adapter, folder)


def write_files(host: Host, adapter: Adapter, folder: Path) -> None:
    """Write PEFT's config and tensors of a finished adapter."""
    family = family_of(adapter.method)
    theirs = family.write(host, adapter)
    tensors: dict[str, Tensor] = {**theirs.whole}
    tensors |= {family.root + key: tensor for key, tensor in theirs.tensors.items()}
    for path, head in heads_of(adapter).items():
        for key, tensor in head.get_submodule("module").state_dict().items():
            tensors[f"{family.root}{path}.{key}"] = tensor
    write_json(folder / CONFIG, theirs.config)
    write_tensors(folder / TENSORS, tensors)


def _obstacles(host: Host, adapter: Adapter) -> list[str]:
    return obstacles(adapter.method, host, None if heads_of(adapter) else False)
