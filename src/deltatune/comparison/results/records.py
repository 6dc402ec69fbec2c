"""Records of a comparison on disk: a line for each finished cell, its predictions, and the trained adapters."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deltatune.core.errors import DeltatuneError
from deltatune.core.input_validation.regular_files import check_regular, read_text
from deltatune.core.input_validation.strict_json import dumps, loads
from deltatune.store.atomic_files import append_line, make_folder, remove_drafts, write_file
from deltatune.store.run_folder import differences

RESULTS = "results.jsonl"
NEEDED = ("cell", "status", "stage", "config")
"""Keys that every record has."""
OTHERS = {
    "config.json": "a model",
    "adapter.json": "an adapter",
    "run.json": "a training run",
    "recipe.yaml": "a recipe",
    "study.json": "a study",
}
"""Files of folders that a comparison is not written into, and what these are."""
FREE = ("method", "settings.learning_rate", "settings.seed", "draw.rows")
"""Keys of a cell's configuration that differ within one comparison."""
EARLIER_KEYS = {"latency_ratio_folded": "latency_ratio_merged"}
"""Keys that earlier versions wrote into results.jsonl and summary.json, and their current names."""


def current_keys(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with the current names of its keys."""
    return {EARLIER_KEYS.get(key, key): value for key, value in record.items()}


class Records:
    """Finished cells of one run folder by key; each is stored the moment it is complete."""

    def __init__(self, folder: Path) -> None:
        """Read what is there; another process may be writing it, so nothing is changed before `repair_`.

        Raises DeltatuneError for a folder of something else.
        """
        self.folder = folder
        self.cells: dict[str, dict[str, Any]] = {}
        self.lines: list[str] = []
        """Complete lines of the file as they were read."""
        path = folder / RESULTS
        other = next((name for name in OTHERS if (folder / name).exists() and not path.exists()), None)
        if other is not None:
            raise DeltatuneError(f"--out {folder} holds {OTHERS[other]} ({other}); choose another folder")
        for line in _lines(path):
            try:
                record = loads(line, path)
            except DeltatuneError:
                continue  # the run was stopped while it wrote this line
            if not (isinstance(record, dict) and set(NEEDED) <= record.keys() and isinstance(record["config"], dict)):
                raise DeltatuneError(
                    f"{path} has a line that is no record of a run: {line[:60]}; restore it, or choose another folder"
                )
            self.lines.append(line)
            if record["status"] == "ok":
                self.cells[str(record["cell"])] = current_keys(record)

    def repair_(self) -> None:
        """Remove what a killed run left unfinished: the last line, and drafts. Only under the folder's lock."""
        for folder in (self.folder, *(self.folder / name for name in ("search", "adapters", "predictions"))):
            remove_drafts(folder)
        if (self.folder / RESULTS).is_file():
            write_file(self.folder / RESULTS, "".join(line + "\n" for line in self.lines))

    def get(self, key: str, adapter: bool) -> dict[str, Any] | None:
        """A finished cell, or None; with `adapter`, only if its adapter still exists."""
        record = self.cells.get(key)
        if record is None or (adapter and not (self.folder / str(record["adapter"]) / "manifest.json").is_file()):
            return None
        if record["stage"] == "final" and not self.answered(key):
            return None
        return record

    def add(self, record: dict[str, Any], answers: Any = None) -> dict[str, Any]:
        """Store a cell: the answers first (arrays, or plain data), the line last. Returns the record."""
        if answers is not None:
            self.keep(record["cell"], answers)
        append_line(self.folder / RESULTS, dumps(record, nonfinite="null"))
        if record["status"] == "ok":
            self.cells[record["cell"]] = record
        return record

    def keep(self, key: str, answers: Any) -> None:
        """Store answers: an array, or plain data."""
        make_folder(self.folder / "predictions")
        if isinstance(answers, np.ndarray):
            array = io.BytesIO()
            np.save(array, answers, allow_pickle=False)
            write_file(self._file(key), array.getvalue())
        else:
            write_file(self._file(key, ".json"), dumps(answers, f"the answers of {key}") + "\n")

    def answered(self, key: str) -> bool:
        """Whether answers are stored under a key."""
        return self._file(key).is_file() or self._file(key, ".json").is_file()

    def answers(self, key: str) -> Any:
        """Answers of a final cell on the test rows: logits (N, C), or plain data."""
        if self._file(key).is_file():
            return np.load(self._file(key), allow_pickle=False)
        return loads(read_text(self._file(key, ".json")), self._file(key, ".json"))

    def _file(self, key: str, suffix: str = ".npy") -> Path:
        return self.folder / "predictions" / f"{key}{suffix}"


def _lines(path: Path) -> list[str]:
    """Lines of a file, which may be incomplete at its end; none if there is no file."""
    if not path.exists():
        return []
    check_regular(path)
    return path.read_bytes().decode("utf-8", "replace").split("\n")  # not at Unicode's own line ends


def unused_results(folder: Path, configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """A note if a folder holds results of another configuration only; they are kept but not used.

    `configs` are identities of cells, one of each method of the plan.
    """
    if not (folder / RESULTS).is_file():
        return []
    records = list(Records(folder).cells.values())
    kinds: list[Mapping[str, Any]] = []
    for config in configs:
        if all(_changes(kind, config) for kind in kinds):
            kinds.append(config)
    changes = [min((_changes(record["config"], kind) for kind in kinds), key=len) for record in records]
    if not all(changes) or not records:
        return []
    name, old, new = min(changes[-1], key=lambda change: change[0] == "data.digest")  # tokens depend on the task
    return [
        f"{folder} holds {len(records)} results of another configuration ({name} was {old!r}, now it is {new!r}), "
        "which are not used; --out NAME keeps both"
    ]


def _changes(config: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """What two cells of one comparison could not differ in."""
    return [change for change in differences(config, other) if change[0] not in FREE]


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """Write a summary as pretty JSON."""
    write_file(path, dumps(summary, path, nonfinite="null", indent=2) + "\n")
