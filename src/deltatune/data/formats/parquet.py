"""Parquet files, read through pyarrow."""

from __future__ import annotations

import importlib
from pathlib import Path

from deltatune.core.errors import DeltatuneError
from deltatune.data.dataset import Row
from deltatune.data.formats.file_format import FileFormat


def read_parquet(path: Path) -> list[Row]:
    """One row for each record."""
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise DeltatuneError(f'{path}: Parquet needs pyarrow. Install it: pip install "deltatune[data]"') from None
    try:
        rows: list[Row] = parquet.read_table(path).to_pylist()
    except (ValueError, OSError) as error:  # the errors of pyarrow derive from these two
        raise DeltatuneError(f"{path} is not a readable Parquet file: {str(error).splitlines()[0]}") from None
    return rows


FORMATS = (FileFormat(read_parquet, (".parquet",)),)
