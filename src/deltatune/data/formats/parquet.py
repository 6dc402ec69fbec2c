"""Parquet and Arrow files, read through pyarrow. Files that `datasets` wrote name the classes of numbered labels."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from deltatune.core.errors import DeltatuneError, first_line
from deltatune.core.input_validation.regular_files import check_regular
from deltatune.data.dataset import Row
from deltatune.data.formats.file_format import FileFormat, first_few
from deltatune.data.sources.class_names import names_of_schema, with_class_names

ARROW_FILE = b"ARROW1"
"""How a file begins that is not a stream."""


def read_parquet(path: Path) -> list[Row]:
    """One row for each record."""

    def table(parquet: Any) -> Any:
        file = parquet.ParquetFile(path)
        _check_names(file.schema_arrow.names)  # pyarrow reads no table with repeated names
        return file.read()

    return _read(path, "pyarrow.parquet", table)


def read_arrow(path: Path) -> list[Row]:
    """One row for each record of a stream, as `Dataset.save_to_disk` writes it, or of an Arrow file."""

    def table(ipc: Any) -> Any:
        with path.open("rb") as file:
            is_file = file.read(len(ARROW_FILE)) == ARROW_FILE
        return (ipc.open_file if is_file else ipc.open_stream)(path.read_bytes()).read_all()

    return _read(path, "pyarrow.ipc", table)


class RepeatedNames(Exception):
    """A table has columns of one name."""


def _check_names(names: Sequence[str]) -> None:
    repeated = [repr(name) for name, number in Counter(names).items() if number > 1]
    if repeated:
        raise RepeatedNames(first_few(repeated))


def _read(path: Path, module: str, read_table: Callable[[Any], Any]) -> list[Row]:
    check_regular(path)
    kind = path.suffix.lower().removeprefix(".").capitalize()
    try:
        library = importlib.import_module(module)
    except ImportError:
        raise DeltatuneError(f'{path}: {kind} needs pyarrow. Install it: pip install "deltatune[data]"') from None
    try:
        table = read_table(library)
        _check_names(table.column_names)
        table.validate(full=True)  # offsets of a damaged file may point outside its buffers
        rows: list[Row] = table.to_pylist()
    except RepeatedNames as error:
        raise DeltatuneError(f"{path} has columns more than once: {error}. Rename or remove them.") from None
    except Exception as error:  # damaged bytes raise whatever pyarrow's layers raise: there is no common class
        reason = first_line(error)
        raise DeltatuneError(f"{path} is not a readable {kind} file: {reason}") from None
    return with_class_names(rows, names_of_schema(table.schema.metadata, path), str(path))


FORMATS = (FileFormat(read_parquet, (".parquet",)), FileFormat(read_arrow, (".arrow",)))
