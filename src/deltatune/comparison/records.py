"""What a comparison leaves on disk as it goes: a line a finished cell, its predictions, and the trained adapters."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltatune.store.atomic import write_file

RESULTS = "results.jsonl"


class Records:
    """Finished cells of one run folder by key; each is stored the moment it is finished."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "predictions").mkdir(parents=True, exist_ok=True)
        self.cells: dict[str, dict[str, Any]] = {}
        path = folder / RESULTS
        if path.is_file():
            self._read(path)

    def _read(self, path: Path) -> None:
        whole = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue  # the line that was being written when the run was stopped
            whole.append(line)
            if record["status"] == "ok":
                self.cells[record["cell"]] = record
        write_file(path, "".join(line + "\n" for line in whole))

    def get(self, key: str, adapter: bool) -> dict[str, Any] | None:
        """A finished cell, or None; where `adapter`, only if its adapter is still there."""
        record = self.cells.get(key)
        if record is None or (adapter and not (self.folder / str(record["adapter"]) / "manifest.json").is_file()):
            return None
        if record["stage"] == "final" and not self._file(key).is_file():
            return None
        return record

    def add(self, record: dict[str, Any], logits: NDArray[Any] | None = None) -> dict[str, Any]:
        """Store a cell: predictions first, the line last. Returns the record."""
        if logits is not None:
            np.save(self._file(record["cell"]), logits, allow_pickle=False)
        with (self.folder / RESULTS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if record["status"] == "ok":
            self.cells[record["cell"]] = record
        return record

    def logits(self, key: str) -> NDArray[Any]:
        """Test logits (N, C) of a final cell."""
        found: NDArray[Any] = np.load(self._file(key), allow_pickle=False)
        return found

    def _file(self, key: str) -> Path:
        return self.folder / "predictions" / f"{key}.npy"


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """Write a summary as pretty JSON."""
    write_file(path, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
