"""A source of data -> the splits that it has: a file, a folder, a data set of the hub, or the built-in data."""

from __future__ import annotations

import os
import platform
from dataclasses import replace
from pathlib import Path

from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.input_validation.regular_files import expanded
from deltatune.data import python_docs
from deltatune.data.dataset import SPLITS, Row, Splits
from deltatune.data.formats import file_formats, is_data_file, missing_file, read_rows
from deltatune.data.sources.class_names import names_of_file
from deltatune.data.sources.folders import open_folder
from deltatune.data.sources.hub import open_hub
from deltatune.data.sources.source import Source
from deltatune.data.splits import by_hash

BUILT_IN = "python-docs"


def open_source(source: str | Path, **split_files: str | Path | None) -> Source:
    """The splits of a source; files given as validation= and test= replace those of the source.

    Raises one DeltatuneError for all files that cannot be read.
    """
    opened, problems = None, []
    splits: Splits = {}
    files = {split: path for split, path in split_files.items() if path is not None}
    try:
        opened = _open(source)
    except DeltatuneError as error:
        problems.append(str(error))
    for split, path in files.items():
        try:
            splits[split] = read_rows(path)
        except DeltatuneError as error:
            problems.append(str(error))
    raise_all(problems)
    assert opened is not None  # otherwise there was a problem
    origin = "; ".join([opened.origin, *(f"{split}: {path}" for split, path in files.items())])
    replaced = [name for name in opened.splits if name.split("_")[0] in files]
    kept = {name: rows for name, rows in opened.splits.items() if name not in replaced}
    further = [name for name in replaced if name not in files]
    notes = [f"not used, as another file was named for it: {name}" for name in further]
    names = {split: name for split, name in opened.split_names.items() if split not in replaced}
    return replace(opened, origin=origin, splits=kept | splits, split_names=names, notes=(*opened.notes, *notes))


def _open(source: str | Path) -> Source:
    """The built-in name, then what exists on disk, then the hub: no network where a path was meant."""
    if source == BUILT_IN:
        return _built_in()
    path = expanded(source)
    if path.is_dir():
        return open_folder(path)
    if os.path.lexists(path):
        rows = {"train": read_rows(path)}
        return Source(path.stem, str(source), rows, _has_header(path), class_names=tuple(names_of_file(path)))
    if isinstance(source, Path) or _is_path(source):
        raise DeltatuneError(missing_file(path))
    return open_hub(source, BUILT_IN)


def _is_path(source: str) -> bool:
    """Whether a name can only be a path: hub names are `name` or `owner/name`."""
    return is_data_file(Path(source)) or source.startswith((".", "/", "~")) or source.count("/") > 1 or "\\" in source


def _has_header(path: Path) -> bool:
    return any(fmt.header for fmt in file_formats(path))


def _built_in() -> Source:
    rows: list[Row] = [dict(row) for row in python_docs.rows()]
    parts = by_hash(rows, ("text",), python_docs.SHARES)
    origin = f"the documentation of Python {platform.python_version()} on {platform.system()}"
    return Source(BUILT_IN, origin, dict(zip(SPLITS, parts, strict=True)), text=("text",), label="label")
