"""Rows -> a file that `read_rows` reads: the suffix chooses JSON Lines, JSON, CSV, TSV or Parquet."""

from __future__ import annotations

import csv
import datetime
import importlib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deltatune.core.errors import DeltatuneError, nearest
from deltatune.core.input_validation.strict_json import dumps, finite_or_null
from deltatune.data.dataset import Row, columns_of

LINES = (".jsonl", ".ndjson")
"""Suffixes of formats that are written row by row; rows of others are kept until all of them are there."""


def json_line(row: Row, ascii_only: bool = False) -> str:
    """A row as JSON on one line; NaN and infinity are null, dates are ISO 8601."""
    return dumps(row, "a row", nonfinite="null", ensure_ascii=ascii_only, default=_as_text)


@contextmanager
def row_writer(path: Path, suffix: str) -> Iterator[Callable[[Iterable[Row]], None]]:
    """A function that adds rows to a new file, which is complete when the context ends without an exception."""
    check_suffix(suffix)
    if suffix in LINES:
        with path.open("w", encoding="utf-8", newline="\n") as file:
            yield lambda rows: file.writelines(f"{json_line(row)}\n" for row in rows)
        return
    kept: list[Row] = []
    yield kept.extend
    _WRITERS[suffix](kept, path)


def check_suffix(suffix: str, name: str = "") -> None:
    """Raise DeltatuneError for a suffix in which rows cannot be written, and for Parquet without pyarrow."""
    choices = sorted((*LINES, *_WRITERS))
    if suffix not in choices:
        what = f"the suffix {suffix!r}{nearest(suffix, choices)}" if suffix else "no suffix"
        raise DeltatuneError(
            f"{name or 'the file'} has {what}; it chooses the format of the rows: {', '.join(choices)}"
        )
    if suffix == ".parquet":
        _pyarrow()


def _write_json(rows: Sequence[Row], path: Path) -> None:
    lines = ",\n".join(map(json_line, rows))
    path.write_text(f"[\n{lines}\n]\n" if rows else "[]\n", encoding="utf-8", newline="\n")


def _write_csv(rows: Sequence[Row], path: Path) -> None:
    path.write_text(_table(rows, ",", csv.QUOTE_MINIMAL), encoding="utf-8", newline="")


def _write_tsv(rows: Sequence[Row], path: Path) -> None:
    # All fields are quoted: quotes around the header tell readers that the others are no part of the texts.
    path.write_text(_table(rows, "\t", csv.QUOTE_ALL), encoding="utf-8", newline="")


def _table(rows: Sequence[Row], delimiter: str, quoting: Any) -> str:
    """A header with every column of the rows, and a line for each row; lists and objects are JSON in their cell."""
    columns = columns_of(rows)
    text = io.StringIO(newline="")
    # The line ends of RFC 4180: `csv` quotes a field with a part of the line end in it, so that CR alone survives.
    writer = csv.writer(text, delimiter=delimiter, quoting=quoting, lineterminator="\r\n")
    if columns:
        writer.writerow(columns)
    writer.writerows([_cell(row.get(column)) for column in columns] for row in rows)
    return text.getvalue()


def _cell(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    value = finite_or_null(value)
    return "" if value is None else dumps(value, "a cell", default=_as_text)


def _write_parquet(rows: Sequence[Row], path: Path) -> None:
    pyarrow = _pyarrow()
    columns = columns_of(rows)
    arrays, problems = [], []
    for column in columns:
        try:
            arrays.append(pyarrow.array([row.get(column) for row in rows]))
        except (pyarrow.ArrowException, OverflowError):
            problems.append(column)
    if problems:
        names = ", ".join(map(repr, problems))
        raise DeltatuneError(
            f"Parquet has one type for each column, and the values of {names} have several; write .jsonl instead"
        )
    importlib.import_module("pyarrow.parquet").write_table(pyarrow.table(arrays, names=columns), path)


def _pyarrow() -> Any:
    try:
        return importlib.import_module("pyarrow")
    except ImportError:
        raise DeltatuneError('Parquet needs pyarrow. Install it: pip install "deltatune[data]"') from None


def _as_text(value: Any) -> str:
    """Values of Parquet files that JSON has no form for."""
    return value.isoformat() if isinstance(value, (datetime.date, datetime.time)) else str(value)


_WRITERS: dict[str, Callable[[Sequence[Row], Path], None]] = {
    ".json": _write_json,
    ".csv": _write_csv,
    ".tsv": _write_tsv,
    ".parquet": _write_parquet,
}
