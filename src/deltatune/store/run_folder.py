"""The folder of one training run: what was asked for, what came out, and whether it may be continued or replaced.

run.json        what was asked for
metrics.jsonl   the figures of each step while it trains; tensorboard/ if asked for
checkpoints/    until the run is finished
adapter/        the trained adapter
metrics.json    its scores, written last: a run that has it is finished
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltatune.core.errors import DeltatuneError
from deltatune.store.atomic_files import write_file

if TYPE_CHECKING:
    from deltatune.data import Data

RECORD, CHECKPOINTS, ADAPTER, METRICS = "run.json", "checkpoints", "adapter", "metrics.json"
FIGURES, TENSORBOARD = "metrics.jsonl", "tensorboard"
FREE = ("versions.", "settings.checkpointing", "settings.report_to")
"""Parts of a record that may change between two sessions of a run."""
LONGEST = 60
"""Characters of a method in a folder's name."""


def default_folder(data: str, method: str) -> Path:
    """`runs/train-<data>-<method>`."""
    words = re.sub(r"[^a-z0-9.]+", "-", f"{data}-{method}".lower()).strip("-.")
    return Path("runs") / f"train-{words[:LONGEST].rstrip('-.')}"


def open_run(folder: Path, record: Mapping[str, Any], force: bool, option: str = "--out ") -> dict[str, Any] | None:
    """Prepare the folder for a run. Returns the metrics if the same run was finished before, else None.

    Raises DeltatuneError if the folder holds another run or foreign files; with `force` another run is removed.
    `option` is how the folder is chosen, for the messages.
    """
    if folder.is_file():
        raise DeltatuneError(f"{option}{folder} is a file; choose another folder")
    stored = _stored(folder)
    if force and stored is not None:
        clear(folder)
    elif stored is not None:
        different = differences(stored, record)
        if different:
            lines = [f"  {name}: it had {was!r}, asked for is {now!r}" for name, was, now in different]
            state = "a finished run" if (folder / METRICS).is_file() else "an unfinished run"
            raise DeltatuneError(
                "\n".join([f"{folder} holds {state} of other settings:", *lines[:12]])
                + f"\n{option}NAME keeps both, --force replaces it"
            )
        tidy(folder)
        if (folder / METRICS).is_file():
            return _read(folder / METRICS)
        return None
    elif folder.is_dir() and any(not _draft_of(path, RECORD) for path in folder.iterdir()):
        raise DeltatuneError(f"{option}{folder} holds files that are no run of deltatune train; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / RECORD, record)
    return None


def clear(folder: Path) -> None:
    """Remove what a run wrote: the mark of being finished first, what says whose folder this is last."""
    (folder / METRICS).unlink(missing_ok=True)
    tidy(folder)
    (folder / FIGURES).unlink(missing_ok=True)
    for name in (CHECKPOINTS, ADAPTER, TENSORBOARD):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / RECORD).unlink(missing_ok=True)


def finish(folder: Path, metrics: Mapping[str, Any]) -> None:
    """Mark a run as finished; its checkpoints are needed no longer."""
    write_whole(folder / METRICS, metrics)
    _remove_checkpoints(folder)


def tidy(folder: Path) -> None:
    """Remove what a killed process left: files and folders half written, checkpoints of a finished run."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if any(_draft_of(path, name) for name in (RECORD, METRICS, FIGURES, ADAPTER)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if (folder / METRICS).is_file():
        _remove_checkpoints(folder)


def _draft_of(path: Path, name: str) -> bool:
    return path.name.startswith(f".{name}.")


def _remove_checkpoints(folder: Path) -> None:
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    for path in folder.glob(f".{RECORD}.*"):  # of a process killed while it began; now nobody writes one
        path.unlink(missing_ok=True)


def differences(stored: Mapping[str, Any], asked: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(name, stored, asked) where two records differ in what changes the result."""
    was, now = _flat(stored), _flat(json.loads(json.dumps(asked)))
    names = [name for name in {**was, **now} if not name.startswith(FREE) and was.get(name) != now.get(name)]
    return [(name, was.get(name), now.get(name)) for name in names]


def data_record(data: Data, source: str) -> dict[str, Any]:
    """Which data a run used: where they came from, and a hash of the rows."""
    content = hashlib.sha256()
    for split, rows in data.splits().items():
        content.update(split.encode())
        for row in rows:
            names = [name for name in (*data.text, data.label, "references") if name in row]
            content.update(json.dumps([row[name] for name in names]).encode())
    return {
        "source": source,
        "origin": data.origin,
        "rows": {split: len(rows) for split, rows in data.splits().items()},
        "content": content.hexdigest()[:32],
    }


def find_adapter(folder: str | Path) -> Path:
    """The adapter's folder, also where the folder of its training run is given.

    Raises DeltatuneError for a run that is not finished.
    """
    path = Path(folder).expanduser()
    if (path / ADAPTER).is_dir():
        return path / ADAPTER
    if (path / RECORD).is_file():
        raise DeltatuneError(f"the run in {path} is not finished, so there is no adapter yet; run its command again")
    return path


def write_whole(path: Path, value: Any) -> None:
    """Write JSON whole or not at all."""
    write_file(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _stored(folder: Path) -> dict[str, Any] | None:
    return _read(folder / RECORD) if (folder / RECORD).is_file() else None


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DeltatuneError(f"cannot read {path}: {error}; remove the run's folder and start again") from None
    return dict(value) if isinstance(value, dict) else {}


def _flat(value: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, item in value.items():
        found |= _flat(item, f"{before}{name}.") if isinstance(item, Mapping) else {before + name: item}
    return found
