"""What a checkpoint holds beside the adapter: the optimiser's state, the schedule's and the random generators'."""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from deltatune.core.delta import generator_for
from deltatune.core.errors import DeltatuneError
from deltatune.core.host import Host
from deltatune.store.adapter_folder import TENSORS
from deltatune.store.atomic_files import check_folder, read_json, write_folder, write_json
from deltatune.store.tensors import read_tensors
from deltatune.tasks.task import TokenRow


def optimizer_tensors(optimizer: Any, names: Sequence[str]) -> dict[str, Tensor]:
    """Adam's moments and step counts as `NAME|exp_avg`; `names` in the order of the optimiser's parameters."""
    state = optimizer.state_dict()["state"]
    return {f"{names[i]}|{key}": value for i, values in state.items() for key, value in values.items()}


def load_optimizer_(
    optimizer: Any, names: Sequence[str], tensors: Mapping[str, Tensor], rates: Sequence[float]
) -> None:
    """Put `optimizer_tensors` and each group's rate back."""
    state: dict[int, dict[str, Tensor]] = {}
    for entry, value in tensors.items():
        name, _, key = entry.rpartition("|")
        state.setdefault(names.index(name), {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict(
        {"state": state, "param_groups": [g | {"lr": r} for g, r in zip(groups, rates, strict=True)]}
    )


def random_tensors() -> dict[str, Tensor]:
    """States of torch's generators."""
    found = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        found |= {f"cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return found


def random_record() -> dict[str, Any]:
    """States of Python's and numpy's generators, as plain data."""
    version, words, gauss = random.getstate()
    kind, keys, place, has_gauss, cached = np.random.get_state(legacy=True)
    numpy_state = [str(kind), np.asarray(keys).tolist(), int(place), int(has_gauss), float(cached)]
    return {"python": [version, list(words), gauss], "numpy": numpy_state}


def of_processes(found: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors of all processes, as `RANK.NAME`."""
    return {f"{rank}.{name}": value for rank, tensors in enumerate(found) for name, value in tensors.items()}


def of_process(tensors: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    """One process's own out of `of_processes`."""
    own = f"{rank}."
    return {name.removeprefix(own): value for name, value in tensors.items() if name.startswith(own)}


def seed_process(seed: int, rank: int) -> None:
    """Let each process drop other values out; the first one as if it were alone."""
    if rank:
        torch.manual_seed(generator_for(seed, f"process.{rank}").initial_seed())


def restore_random(tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Put all generators back."""
    torch.set_rng_state(tensors["cpu"])
    for i in range(torch.cuda.device_count()):
        if f"cuda.{i}" in tensors:
            torch.cuda.set_rng_state(tensors[f"cuda.{i}"], i)
    version, words, gauss = record["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, place, has_gauss, cached = record["numpy"]
    np.random.set_state((kind, np.asarray(keys, np.uint32), place, has_gauss, cached))


def digest_of(rows: Sequence[TokenRow]) -> str:
    """Hash of encoded rows: tokens, labels and order."""
    found = hashlib.sha256()
    for row in rows:
        for name in sorted(row):
            found.update(np.asarray(row[name]).tobytes())
            found.update(name.encode())
    return found.hexdigest()[:32]


def check_same_run(folder: Any, stored: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Raise DeltatuneError if the checkpoint in `folder` is of another run, naming every difference."""
    changed = [
        f"\n  {name}: the checkpoint has {stored.get(name)!r}, asked for is {asked.get(name)!r}"
        for name in dict.fromkeys([*stored, *asked])
        if stored.get(name) != asked.get(name)
    ]
    if changed:
        raise DeltatuneError(
            f"{folder} is a checkpoint of another run:{''.join(changed)}\nchoose another out folder, or delete this one"
        )


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
