"""What is added to an adapter store: adapters' folders, folders of runs, and folders of such folders."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltatune.core.errors import DeltatuneError
from deltatune.core.input_validation.regular_files import check_directory, expanded
from deltatune.store.adapter_store.adapter_names import name_of
from deltatune.store.atomic_files import KINDS, read_json
from deltatune.store.run_folder import ADAPTER, METRICS, RECORD, find_adapter

_MARKS = tuple(name for name, kind in KINDS.items() if kind == "an adapter")


@dataclass(frozen=True)
class AddedFolder:
    """One adapter that is to be added."""

    folder: Path
    """The adapter's folder, or that of its run."""
    name: str

    def adapter(self) -> Path:
        """The adapter's folder. Raises DeltatuneError for a run that is not finished."""
        return find_adapter(self.folder)

    def run_scores(self) -> Mapping[str, Any]:
        """The scores of the run that the adapter is of; empty if there is none."""
        path = self.adapter()
        if path.name == ADAPTER and (path.parent / METRICS).is_file():
            return read_json(path.parent / METRICS)
        return {}


def source(folder: str | Path, name: str | None = None) -> AddedFolder:
    """One adapter by its folder, or by that of its run, under its own name or that of its folder."""
    path = expanded(folder)
    return AddedFolder(path, name_of(path) if name is None else name)


def sources_in(folder: str | Path) -> list[AddedFolder]:
    """The adapter of a folder, or else those of the folders in it. Raises DeltatuneError if there is none."""
    path = expanded(folder)
    check_directory(path, "adapter")
    if _is_adapter(path):
        return [source(path)]
    with os.scandir(path) as files:
        folders = sorted(Path(file.path) for file in files if file.is_dir() and not file.name.startswith("."))
    found = [source(each) for each in folders if _is_adapter(each)]
    if not found:
        have = ", ".join(sorted(each.name for each in path.iterdir())[:8]) or "nothing"
        raise DeltatuneError(
            f"{path} holds no adapter (no {' and no '.join(_MARKS)}), and no folder in it does; it holds: {have}"
        )
    return found


def _is_adapter(folder: Path) -> bool:
    """Whether a folder is an adapter's or a run's, finished or not."""
    if (folder / RECORD).is_file() or any(os.path.lexists(folder / mark) for mark in _MARKS):
        return True
    return any(os.path.lexists(folder / ADAPTER / mark) for mark in _MARKS)
