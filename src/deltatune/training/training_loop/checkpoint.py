"""Checkpoints: the adapter, the optimizer, the random generators and the progress of a run, in one folder per step."""

from __future__ import annotations

import hashlib
import random
import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deltatune.core.adapter_shape import mismatches
from deltatune.core.delta import generator_for
from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.host import Host
from deltatune.store.adapter_folder import TENSORS
from deltatune.store.atomic_files import MANIFEST, check_folder, read_json, write_folder, write_json
from deltatune.store.tensors import not_finite, read_tensors, write_tensors
from deltatune.tasks.preferences.pair_collator import REFERENCE
from deltatune.tasks.task import TokenRow
from deltatune.training.optimizers.stored_states import load_states_, state_problems, write_states
from deltatune.training.scaling.distributed import Processes

# --- random generators ---


def seed_process(seed: int, rank: int) -> None:
    """Seed all generators. Each process draws its own dropout; process 0 draws that of a single process."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(generator_for(seed, f"process.{rank}").initial_seed() if rank else seed)


def random_tensors() -> dict[str, Tensor]:
    """States of torch's generators."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def random_record() -> dict[str, Any]:
    """States of Python's and numpy's generators, as plain data."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    numpy_state = [str(kind), np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)]
    return {"python": [version, list(words), gauss], "numpy": numpy_state}


def set_random_tensors(tensors: Mapping[str, Tensor]) -> None:
    """Restore torch's generators from `random_tensors`."""
    torch.set_rng_state(tensors["cpu"])
    for i in range(torch.cuda.device_count()):
        if f"cuda.{i}" in tensors:
            torch.cuda.set_rng_state(tensors[f"cuda.{i}"], i)


def restore_random(tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Restore all generators from `random_tensors` and `random_record`."""
    set_random_tensors(tensors)
    version, words, gauss = record["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = record["numpy"]
    np.random.set_state((kind, np.asarray(keys, np.uint32), position, has_gauss, cached))


def tensors_by_rank(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors of all processes, as `RANK.NAME`."""
    return {f"{rank}.{name}": value for rank, tensors in enumerate(states) for name, value in tensors.items()}


def tensors_of_rank(tensors: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    """One process's tensors out of `tensors_by_rank`."""
    prefix = f"{rank}."
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


# --- which run a checkpoint is of ---


def digest_of(rows: Sequence[TokenRow]) -> str:
    """Hash of encoded rows: tokens, labels and order; not what draws a row anew, nor what a reference made of it."""
    digest = hashlib.sha256()
    for row in rows:
        for name in sorted(name for name, value in row.items() if name != REFERENCE and not callable(value)):
            digest.update(_bytes_of(row[name]))
            digest.update(name.encode())
    return digest.hexdigest()[:32]


def _bytes_of(value: Any) -> bytes:
    try:
        return np.asarray(value).tobytes()
    except ValueError:  # words of different lengths make no array
        return repr(value).encode()


def check_same_run(folder: Path, identity: Mapping[str, Any]) -> None:
    """Raise DeltatuneError if the checkpoint in `folder` is of another run, naming every difference."""
    stored = read_json(folder / RUN).get("identity")
    if not isinstance(stored, dict):
        raise DeltatuneError(f"{folder / RUN} does not say which run it is of; {DELETE}")
    different = [
        f"\n  {name}: the checkpoint has {stored.get(name)!r}, this run has {identity.get(name)!r}"
        for name in dict.fromkeys([*stored, *identity])
        if stored.get(name) != identity.get(name)
    ]
    if different:
        earlier = ""
        if stored.get("schedule_version") != identity.get("schedule_version"):
            earlier = "\nanother version of deltatune began this run, with another warm-up of the learning rate"
        raise DeltatuneError(
            f"{folder} is a checkpoint of another run:{''.join(different)}{earlier}\nchoose another out folder, delete "
            "this one, or train again with --force"
        )


# --- folders ---

PREFIX, ADAPTER = "checkpoint-", "adapter"
RUN, OPTIMIZER, RANDOM = "run.json", "optimizer.safetensors", "random.safetensors"
FILES = (RUN, OPTIMIZER, RANDOM, f"{ADAPTER}/{TENSORS}")
"""Files without which no run can be resumed."""
DELETE = "delete this checkpoint, and the run resumes from the one before, or from the start"
NEWEST_KEPT = 2
"""Checkpoints that are kept: the older one is for a disk that lost part of the newer one."""


def save(
    out: Path,
    step: int,
    host: Host,
    adapter: str,
    optimizer: torch.optim.Optimizer,
    names: Sequence[str],
    progress: Mapping[str, Any],
    identity: Mapping[str, Any],
    processes: Processes,
) -> None:
    """Write `checkpoint-STEP`; process 0 writes, with the random states of every process.

    names: the optimizer's parameters in its order. progress, identity: plain data; see `check_same_run`.
    """
    states = processes.all_gather((random_tensors(), random_record()))
    if not processes.is_main:
        return
    folder = out / f"{PREFIX}{step}"
    shutil.rmtree(folder, ignore_errors=True)  # an incomplete one: a complete one would have been resumed

    def fill(draft: Path) -> None:
        host.save(adapter, draft / ADAPTER, training=True)
        write_states(draft / OPTIMIZER, optimizer, names)
        write_tensors(draft / RANDOM, tensors_by_rank([tensors for tensors, _ in states]))
        random_records = [record for _, record in states]
        write_json(draft / RUN, {"identity": identity, "progress": progress, "random": random_records})

    write_folder(folder, fill)
    for _, old in [entry for entry in listed(out) if entry[0] <= step][NEWEST_KEPT:]:
        shutil.rmtree(old, ignore_errors=True)


def load_(
    folder: Path,
    host: Host,
    adapter: str,
    optimizer: torch.optim.Optimizer,
    names: Sequence[str],
    processes: Processes,
    required: Collection[str] = (),
) -> dict[str, Any]:
    """Restore the adapter, the optimizer and this process's random generators; return the stored progress.

    `required`: names of tensors that every step trains, so that the optimizer has moments of them.
    Raises DeltatuneError with all that is wrong in the files, before anything is changed.
    """
    values = read_tensors(folder / ADAPTER / TENSORS)
    record, random_states = read_json(folder / RUN), read_tensors(folder / RANDOM)
    found = mismatches(host.adapters[adapter].tensors(), values) + not_finite(values)
    problems = [f"{ADAPTER}/{TENSORS}: {problem}" for problem in found]
    problems += [f"{OPTIMIZER}: {p}" for p in state_problems(folder / OPTIMIZER, optimizer, names, required)]
    problems += [f"{RUN}: {p}" for p in progress_problems(record.get("progress"), step_of(folder))]
    records = record.get("random")
    if not isinstance(records, list):
        problems.append(f"{RUN}: random is not a list")
    elif processes.rank < len(records):  # a process that the stopped run did not have keeps its seed
        try:
            restore_random(tensors_of_rank(random_states, processes.rank), records[processes.rank])
        except (KeyError, TypeError, ValueError, RuntimeError, IndexError, OverflowError):
            problems.append(f"the states of the random generators in {RUN} and {RANDOM} are damaged")
    raise_all(problems, f"{folder} cannot be resumed; {DELETE}:" if problems else "")
    host.adapters[adapter].load_tensors(values)
    load_states_(folder / OPTIMIZER, optimizer, names)
    progress: dict[str, Any] = record["progress"]
    return progress


def progress_problems(progress: Any, step: int) -> list[str]:
    """What is wrong with the stored progress of a run that has done so many steps."""
    if not isinstance(progress, dict):
        return ["progress is missing"]
    history, evaluations = progress.get("history"), progress.get("evaluations")
    problems = [f"progress.{n} is not a number" for n in ("seconds", "rows") if not _is_number(progress.get(n))]
    pairs = isinstance(history, list) and all(isinstance(p, list) and len(p) == 2 and _is_number(p[1]) for p in history)
    if not pairs or [pair[0] for pair in history or ()] != list(range(1, step + 1)):
        problems.append(f"progress.history does not have a loss for each step from 1 to {step}")
    if not isinstance(evaluations, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and _is_number(pair[0]) and isinstance(pair[1], dict)
        for pair in evaluations
    ):
        problems.append("progress.evaluations is not a list of steps and scores")
    if not isinstance(progress.get("moved", True), bool):
        problems.append("progress.moved is not true or false")
    return problems


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def to_resume(out: Path, processes: Processes) -> Path | None:
    """The checkpoint that a run resumes from; process 0 looks for it, and removes what a killed run left half done."""
    if processes.is_main and out.is_dir():
        remove_partial_checkpoints(out)
    return processes.broadcast(newest(out) if processes.is_main else None)


def remove_partial_checkpoints(out: Path) -> None:
    """Remove what a killed run left: folders half written, checkpoints half deleted."""
    for path in [*out.glob(f".{PREFIX}*"), *out.glob(".*.draft")]:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    complete_steps = [step for step, folder in listed(out) if complete(folder)]
    for step, folder in listed(out):
        if len(complete_steps) >= NEWEST_KEPT and step < complete_steps[NEWEST_KEPT - 1]:
            shutil.rmtree(folder, ignore_errors=True)


def newest(out: Path) -> Path | None:
    """The newest complete checkpoint in a folder, or None."""
    return next((folder for _, folder in listed(out) if complete(folder)), None)


def listed(out: Path) -> list[tuple[int, Path]]:
    """(step, folder) of everything named like a checkpoint, newest first."""
    folders = [path for path in out.glob(f"{PREFIX}*") if re.fullmatch(r"[0-9]{1,15}", path.name.removeprefix(PREFIX))]
    return sorted(((step_of(path), path) for path in folders), reverse=True)


def step_of(folder: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(folder.name.removeprefix(PREFIX))


def complete(folder: Path) -> bool:
    """Whether no file is missing and every file has the hash in the manifest."""
    try:
        check_folder(folder)
    except DeltatuneError:
        return False
    return bool(set(FILES) <= read_json(folder / MANIFEST)["files"].keys())
