"""Checkpoints on disk: safetensors and JSON, whole or not at all, the newest complete one found again.

`checkpoint-STEP/adapter` is an adapter folder that `Host.load` takes; the files beside it hold what going on needs.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from deltatune.core.errors import DeltatuneError
from deltatune.core.host import Host
from deltatune.store.atomic import check_folder, read_json, write_folder, write_json
from deltatune.store.folder import TENSORS
from deltatune.store.tensors import read_tensors

PREFIX, ADAPTER = "checkpoint-", "adapter"
KEPT = 2
"""Checkpoints that are left; the last but one covers a disk that lied about the last."""


def write(
    out: Path,
    step: int,
    save_adapter: Callable[[Path], Any],
    tensors: Mapping[str, Mapping[str, Tensor]],
    records: Mapping[str, Any],
) -> Path:
    """Write `checkpoint-STEP` with a safetensors file for each entry of `tensors` and a JSON file for each record."""
    folder = out / f"{PREFIX}{step}"
    shutil.rmtree(folder, ignore_errors=True)  # a broken one of this step: a complete one would have been resumed

    def fill(work: Path) -> None:
        save_adapter(work / ADAPTER)
        for name, values in tensors.items():
            save_file(
                {key: value.detach().cpu().contiguous() for key, value in values.items()}, work / f"{name}.safetensors"
            )
        for name, record in records.items():
            write_json(work / f"{name}.json", record)

    write_folder(folder, fill)
    for _, old in [found for found in listed(out) if found[0] <= step][KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def tidy(out: Path) -> None:
    """Remove what a killed run left: folders half written, checkpoints half deleted."""
    for left in [*out.glob(f".{PREFIX}*"), *out.glob(".*.draft")]:
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    whole = [step for step, folder in listed(out) if complete(folder)]
    for step, old in listed(out):
        if len(whole) >= KEPT and step < whole[KEPT - 1]:
            shutil.rmtree(old, ignore_errors=True)


def newest(out: Path) -> Path | None:
    """The newest complete checkpoint in a folder, or None."""
    return next((folder for _, folder in listed(out) if complete(folder)), None)


def listed(out: Path) -> list[tuple[int, Path]]:
    """(step, folder) of everything named like a checkpoint, newest first."""
    found = [path for path in out.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit()]
    return sorted(((step_of(path), path) for path in found), reverse=True)


def step_of(folder: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(folder.name.removeprefix(PREFIX))


def complete(folder: Path) -> bool:
    """Whether every file is there and has the bytes the manifest says."""
    try:
        check_folder(folder)
    except DeltatuneError:
        return False
    return True


def load_adapter_(host: Host, name: str, folder: Path) -> None:
    """Copy the tensors of a checkpoint into an adapter of the same shape."""
    host.adapters[name].load_tensors(read_tensors(folder / ADAPTER / TENSORS))


def tensors_of(folder: Path, name: str) -> dict[str, Tensor]:
    """Tensors of one file of a checkpoint."""
    return read_tensors(folder / f"{name}.safetensors")


def record_of(folder: Path, name: str) -> dict[str, Any]:
    """One record of a checkpoint."""
    return read_json(folder / f"{name}.json")
