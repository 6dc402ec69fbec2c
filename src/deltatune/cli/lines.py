"""Rows to predict, read as they come: one text a line, or rows of a table with the task's columns."""

from __future__ import annotations

import csv
import io
import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from deltatune.core.errors import DeltatuneError, nearest

Row = dict[str, Any]
BY_SUFFIX = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv"}
WHOLE = (".json", ".parquet")
"""Formats that are read at once."""


def rows_from(file: str, columns: Sequence[str], every: bool = True) -> Iterator[Row]:
    """Rows of a file, or of stdin for "-"; each has all of the columns, or where not `every` one of them.

    Raises DeltatuneError naming the line that cannot be used.
    """
    if file == "-":
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(encoding="utf-8-sig")
        yield from parsed(_decoded(sys.stdin), "stdin", None, columns, every)
        return
    path = Path(file).expanduser()
    if not path.is_file() or path.suffix.lower() in WHOLE:
        from deltatune.data import read_rows

        yield from _with_columns(read_rows(path), file, columns, every)  # raises where there is no such file
        return
    with path.open(encoding="utf-8-sig", newline="") as stream:
        yield from parsed(_decoded(stream, file), file, BY_SUFFIX.get(path.suffix.lower()), columns, every)


def _decoded(stream: Iterable[str], name: str = "stdin") -> Iterator[str]:
    try:
        yield from stream
    except UnicodeDecodeError as error:
        raise DeltatuneError(f"{name} is not UTF-8 ({error.reason}); convert it: iconv -f OLD -t UTF-8") from None


def parsed(
    lines: Iterator[str], name: str, kind: str | None, columns: Sequence[str], every: bool = True
) -> Iterator[Row]:
    """Rows of lines; without a kind the first line tells: an object is JSONL, the columns' names are a CSV header."""
    first = next(lines, None)
    if first is None:
        return
    lines = itertools.chain([first], lines)
    kind = kind or sniffed(first, columns)
    if kind == "jsonl":
        yield from _with_columns(_objects(lines, name), name, columns, every)
    elif kind in ("csv", "tsv"):
        yield from _with_columns(_table(lines, name, "," if kind == "csv" else "\t"), name, columns, every)
    else:
        yield from _texts(lines, name, columns)


def sniffed(line: str, columns: Sequence[str]) -> str:
    """jsonl, csv, tsv or text."""
    if line.lstrip().startswith("{"):
        return "jsonl"
    for kind, separator in (("csv", ","), ("tsv", "\t")):
        header = next(csv.reader([line.rstrip("\r\n")], delimiter=separator), [])
        if set(columns) <= set(header):
            return kind
    return "text"


def _texts(lines: Iterable[str], name: str, columns: Sequence[str]) -> Iterator[Row]:
    blank = 0
    for number, line in enumerate(lines, 1):
        text = line.rstrip("\r\n")
        if not text.strip():
            blank += 1
            continue
        parts = text.split("\t") if len(columns) > 1 else [text]
        if len(parts) != len(columns):
            raise DeltatuneError(
                f"{name} line {number} has {len(parts)} texts, this adapter reads {len(columns)} "
                f"({', '.join(columns)}): put one tab between them"
            )
        yield dict(zip(columns, parts, strict=True))
    if blank:
        were = "1 blank line was" if blank == 1 else f"{blank} blank lines were"
        print(f"{name}: {were} skipped", file=sys.stderr)


def _objects(lines: Iterable[str], name: str) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DeltatuneError(f"{name} line {number} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise DeltatuneError(f"{name} line {number} is a JSON {type(row).__name__}, not an object")
        yield row


def _table(lines: Iterator[str], name: str, separator: str) -> Iterator[Row]:
    reader = csv.reader(lines, delimiter=separator, strict=True)
    try:
        header = next(reader, [])
        for fields in reader:
            if not fields:
                continue
            if len(fields) != len(header):
                raise DeltatuneError(
                    f"{name} line {reader.line_num} has {len(fields)} fields, the header {len(header)}"
                )
            yield dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise DeltatuneError(f"{name} line {reader.line_num}: {error}") from None


def _with_columns(rows: Iterable[Row], name: str, columns: Sequence[str], every: bool) -> Iterator[Row]:
    """The rows, each of which must have the texts, or one of them."""
    for number, row in enumerate(rows, 1):
        lacking = [column for column in columns if not row.get(column) and not isinstance(row.get(column), str)]
        if lacking and (every or len(lacking) == len(columns)):
            have = ", ".join(row) or "none"
            near = nearest(lacking[0], row)
            raise DeltatuneError(f"{name} row {number} has no text in column {lacking[0]!r}{near}; its columns: {have}")
        yield row
