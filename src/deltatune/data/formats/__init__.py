"""One file -> rows. Each module here that has `FORMATS` is a file format; a format is registered by being there."""

from __future__ import annotations

import importlib
import os
import pkgutil
from functools import cache
from pathlib import Path

from deltatune.core.errors import DeltatuneError, nearest
from deltatune.core.input_validation.regular_files import check_regular, expanded
from deltatune.data.dataset import Row
from deltatune.data.formats.file_format import FileFormat, first_few
from deltatune.data.media.media_files import with_media_files

__all__ = ["all_formats", "file_formats", "folder_formats", "is_data_file", "missing_file", "read_rows", "suffixes"]


@cache
def all_formats() -> tuple[FileFormat, ...]:
    """The formats of every module in this folder; those that recognise their files by content come first."""
    modules = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    formats = [fmt for module in modules for fmt in getattr(module, "FORMATS", ())]
    return tuple(sorted(formats, key=lambda fmt: not fmt.by_content))


def file_formats(path: Path) -> list[FileFormat]:
    """The formats that a file with this suffix can have, in the order in which they are tried."""
    return [fmt for fmt in all_formats() if path.suffix.lower() in fmt.suffixes]


def folder_formats() -> list[FileFormat]:
    """The formats that are a whole folder."""
    return [fmt for fmt in all_formats() if not fmt.suffixes]


def suffixes() -> list[str]:
    """Every suffix that can be read, sorted."""
    return sorted({suffix for fmt in all_formats() for suffix in fmt.suffixes})


def is_data_file(path: Path) -> bool:
    """Whether some format has the file's suffix."""
    return bool(file_formats(path))


def read_rows(path: str | Path) -> list[Row]:
    """The rows of one file, each a dict of column to value.

    CSV and TSV values are strings. JSON is a list of objects, or SQuAD's nesting with one row for each question. CoNLL
    files give one row for each sentence, with `tokens` and `tags`. A plain text file is one row with the column `text`.
    Columns of names of images or sounds, relative to the file's folder, hold media files.
    Raises DeltatuneError for a missing, empty or malformed file.
    """
    path = expanded(path)
    if not os.path.lexists(path) or path.is_dir():
        raise DeltatuneError(missing_file(path))
    check_regular(path)
    formats = file_formats(path)
    if not formats:
        raise DeltatuneError(f"{path}: unknown format {path.suffix!r}. Known formats: {', '.join(suffixes())}.")
    if path.stat().st_size == 0:
        raise DeltatuneError(f"{path} is empty.")
    rows = next((rows for fmt in formats if (rows := fmt.read(path)) is not None), None)
    if not rows:
        raise DeltatuneError(f"{path} holds no rows.")
    return with_media_files(rows, path.parent)


def missing_file(path: Path) -> str:
    """The error for a file that does not exist: the nearest name beside it, and the data files of its folder."""
    if path.is_dir():
        return f"{path} is a folder; a file is needed here."
    if os.path.lexists(path):
        check_regular(path)
    if not path.parent.is_dir():
        return f"no file {path}: there is no folder {path.parent}."
    names = sorted(item.name for item in path.parent.iterdir() if is_data_file(item))
    listing = (
        f" Data files in {path.parent}: {first_few(names)}." if names else f" There are no data files in {path.parent}."
    )
    return f"no file {path}{nearest(path.name, names) or '.'}{listing}"
