"""The folder of one training run: its settings, results, and whether it may be resumed or replaced.

run.json        the settings
metrics.jsonl   metrics of each step during training; tensorboard/ if requested
checkpoints/    until the run is finished
samples/        of text to image, pictures without and with the adapter
adapter/        the trained adapter
metrics.json    its scores, written last: a run that has it is finished
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.input_validation.regular_files import expanded, read_text
from deltatune.core.input_validation.strict_json import dumps, loads
from deltatune.store.atomic_files import check_folder, write_file
from deltatune.store.folder_lock import LOCK

if TYPE_CHECKING:
    from deltatune.data import Data

RECORD, CHECKPOINTS, ADAPTER, METRICS = "run.json", "checkpoints", "adapter", "metrics.json"
STEP_METRICS, TENSORBOARD, SAMPLES = "metrics.jsonl", "tensorboard", "samples"
HOSTED = "hosted.json"
"""The file that names the adapters in a folder that `save_pretrained` of a model with adapters wrote."""
MAY_DIFFER = ("versions.", "settings.checkpointing", "settings.report_to")
"""Parts of a record that may differ when a run is resumed."""
SINCE = ("base",)
"""Parts of a record that runs of earlier versions lack: those are not compared."""
MAX_NAME = 60
"""Maximum number of characters of data and method in a folder's name."""


def default_folder(data: str, method: str, quantize: str | None = None) -> Path:
    """`runs/train-<data>-<method>`, with `nf4` between them for a base that is quantised so."""
    parts = [data, *([] if quantize is None else [quantize]), method]
    name = re.sub(r"[^a-z0-9.]+", "-", "-".join(parts).lower()).strip("-.")
    return Path("runs") / f"train-{name[:MAX_NAME].rstrip('-.')}"


def open_run(
    folder: Path, record: Mapping[str, Any], force: bool, option: str = "--out ", replace: str = "--force"
) -> dict[str, Any] | None:
    """Prepare the folder for a run. Returns the metrics if the same run is already finished, else None.

    Raises DeltatuneError if the folder holds another run or other files; with `force` another run is removed.
    `option` is the command-line option of the folder, and `replace` that which runs it again, for the messages.
    """
    if folder.is_file():
        raise DeltatuneError(f"{option}{folder} is a file; choose another folder")
    stored = _stored(folder)
    if force and stored is not None:
        clear(folder)
    elif stored is not None:
        changed = differences({name: record.get(name) for name in SINCE} | stored, record)
        if changed:
            lines = [f"  {name}: it was {old!r}, now it is {new!r}" for name, old, new in changed]
            state = "a finished run" if (folder / METRICS).is_file() else "an unfinished run"
            raise DeltatuneError(
                "\n".join([f"{folder} holds {state} with other settings:", *lines[:12]])
                + f"\n{option}NAME keeps both, {replace} replaces it"
            )
        remove_partial_files(folder)
        if (folder / METRICS).is_file():
            return _finished(folder, replace)
        return None
    elif folder.is_dir() and any(not _draft_of(path, RECORD) and path.name != LOCK for path in folder.iterdir()):
        raise DeltatuneError(
            f"{option}{folder} holds files that are not a run of deltatune train; choose another folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_record(folder / RECORD, record)
    return None


def clear(folder: Path) -> None:
    """Remove a run's files: first those that mark it as finished, last those that mark the folder as a run."""
    protected = [name for name in (CHECKPOINTS, ADAPTER, TENSORBOARD, SAMPLES) if not _removable(folder / name)]
    raise_all([f"{folder / name} is write-protected, so the run in {folder} is not replaced" for name in protected])
    (folder / METRICS).unlink(missing_ok=True)
    remove_partial_files(folder)
    (folder / STEP_METRICS).unlink(missing_ok=True)
    for name in (CHECKPOINTS, ADAPTER, TENSORBOARD, SAMPLES):
        if (folder / name).is_symlink():
            (folder / name).unlink()
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / RECORD).unlink(missing_ok=True)


def _removable(folder: Path) -> bool:
    return folder.is_symlink() or not folder.is_dir() or os.access(folder, os.R_OK | os.W_OK | os.X_OK)


def finish(folder: Path, metrics: Mapping[str, Any]) -> None:
    """Mark a run as finished and remove its checkpoints."""
    write_record(folder / METRICS, metrics)
    _remove_checkpoints(folder)


def remove_partial_files(folder: Path) -> None:
    """Remove what a killed process left: incomplete files and folders, checkpoints of a finished run."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if any(_draft_of(path, name) for name in (RECORD, METRICS, STEP_METRICS, ADAPTER)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)  # one that is write-protected stays, and does no harm
            else:
                path.unlink()
    if (folder / METRICS).is_file():
        _remove_checkpoints(folder)


def _draft_of(path: Path, name: str) -> bool:
    return path.name.startswith(f".{name}.")


def _remove_checkpoints(folder: Path) -> None:
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    for path in folder.glob(f".{RECORD}.*"):  # of a process killed at its start; no process writes one now
        path.unlink(missing_ok=True)


def differences(stored: Mapping[str, Any], record: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """List (name, stored value, new value) for settings that differ and change the result."""
    old, new = _flat(stored), _flat(loads(dumps(record), "the settings of the run"))
    names = [name for name in {**old, **new} if not name.startswith(MAY_DIFFER) and old.get(name) != new.get(name)]
    return [(name, old.get(name), new.get(name)) for name in names]


def data_record(data: Data, source: str) -> dict[str, Any]:
    """Describe the data of a run: their source, and a hash of the rows."""
    parts: Mapping[str, Data] = getattr(data, "parts", {})
    if parts:
        sources = getattr(data, "sources", {})
        records = {name: data_record(part, sources.get(name, part.origin)) for name, part in parts.items()}
        counts = {split: len(rows) for split, rows in data.splits().items()}
        return {"source": source, "origin": data.origin, "rows": counts, "parts": records}
    content = hashlib.sha256()
    for split, rows in data.splits().items():
        content.update(split.encode())
        for row in rows:
            names = [name for name in (*data.text, data.label, "references") if name in row]
            values = [getattr(row[name], "digest", row[name]) for name in names]  # files count by their bytes
            content.update(dumps(values, "a row", ensure_ascii=True).encode())
    return {
        "source": source,
        "origin": data.origin,
        "rows": {split: len(rows) for split, rows in data.splits().items()},
        "content": content.hexdigest()[:32],
    }


def find_adapter(folder: str | Path) -> Path:
    """Return the folder of an adapter, given that, the folder of its training run, or one of `save_pretrained`.

    Raises DeltatuneError for an unfinished run, and for a folder of several adapters.
    """
    path = expanded(folder)
    if (path / ADAPTER).is_dir():
        return path / ADAPTER
    if (path / HOSTED).is_file():
        inside = sorted(item for item in path.iterdir() if (item / "adapter.json").is_file())
        if len(inside) == 1:
            return inside[0]
        raise DeltatuneError(
            f"{path} holds several adapters; name one: {', '.join(map(str, inside)) or 'none is left'}"
        )
    if (path / RECORD).is_file():
        raise DeltatuneError(
            f"the run in {path} is finished, but its adapter was removed; train it again with --force"
            if (path / METRICS).is_file()
            else f"the run in {path} is not finished, so it has no adapter yet; resume it with the same command"
        )
    return path


def write_record(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    write_file(path, dumps(value, path, nonfinite="null", indent=2) + "\n")


def _finished(folder: Path, replace: str) -> dict[str, Any]:
    """The content of metrics.json. Raises DeltatuneError if that, or the adapter of a training, is gone or damaged."""
    metrics, adapter = _read(folder / METRICS), folder / ADAPTER
    try:
        if "methods" in metrics:  # of several trainings, each in a folder of its own
            return metrics
        if not all(isinstance(metrics.get(name), dict) for name in ("validation", "training")):
            raise DeltatuneError(f"{folder / METRICS} has no scores")
        check_folder(adapter)
    except DeltatuneError as error:
        raise DeltatuneError(f"the run in {folder} is finished, but {error}\n{replace} trains it again") from None
    return metrics


def _stored(folder: Path) -> dict[str, Any] | None:
    return _read(folder / RECORD) if (folder / RECORD).is_file() else None


def _read(path: Path) -> dict[str, Any]:
    try:
        value = loads(read_text(path), path)
    except DeltatuneError as error:
        raise DeltatuneError(f"{error}; remove the folder of the run and start again") from None
    return dict(value) if isinstance(value, dict) else {}


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted names."""
    flat: dict[str, Any] = {}
    for name, item in value.items():
        flat |= _flat(item, f"{prefix}{name}.") if isinstance(item, Mapping) else {prefix + name: item}
    return flat
