"""CSV and TSV files: a header line with the column names, then one row per line."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from deltatune.core.errors import DeltatuneError
from deltatune.data.dataset import Row
from deltatune.data.formats.file_format import FileFormat, raise_malformed, read_text

SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}

CSV_FIX = "A text with a comma or a line break in it must be in double quotes."
TSV_FIX = "A tab separates fields; a text with a tab in it must be in double quotes."


def read_csv(path: Path) -> list[Row]:
    """Comma-separated, quoted with double quotes (RFC 4180)."""
    rows, problems = _table(read_text(path), ",", csv.QUOTE_MINIMAL)
    raise_malformed(path, problems, CSV_FIX)
    return rows


def read_tsv(path: Path) -> list[Row]:
    """Tab-separated, with CSV's quoting if the file follows it, else with quotes as ordinary characters (as in GLUE).

    Under CSV's quoting, a stray quote at the start of a field swallows line ends. So where both readings succeed, the
    one with more rows is right.
    """
    text = read_text(path)
    quoted_rows, quoted_problems = _table(text, "\t", csv.QUOTE_MINIMAL)
    rows, problems = _table(text, "\t", csv.QUOTE_NONE)
    if not quoted_problems and (problems or len(quoted_rows) >= len(rows)):
        return quoted_rows
    raise_malformed(path, problems, TSV_FIX)
    return rows


def _table(text: str, delimiter: str, quoting: int) -> tuple[list[Row], list[str]]:
    """Rows and problems of a delimited text with a header line."""
    rows: list[Row] = []
    problems: list[str] = []
    records = _records(text, delimiter, quoting)
    old_limit = csv.field_size_limit(2**31 - 1)  # the default of 128 KiB is less than a long document
    try:
        line, header = next(records, (1, []))
        problems += _header_problems(line, header, delimiter)
        if problems:
            return [], problems
        for line, fields in records:
            if len(fields) == len(header):
                rows.append(dict(zip(header, fields, strict=True)))
            elif any(field.strip() for field in fields):
                count = "1 field" if len(fields) == 1 else f"{len(fields)} fields"
                problems.append(f"line {line} has {count}, the header has {len(header)} ({', '.join(header)})")
    except csv.Error as error:
        problems.append(str(error))
    finally:
        csv.field_size_limit(old_limit)
    return rows, problems


def _records(text: str, delimiter: str, quoting: int) -> Iterator[tuple[int, list[str]]]:
    """(first line, fields) of each record that is not a blank line. Raises csv.Error naming the line."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)  # type: ignore[arg-type]
    line = 1
    try:
        for fields in reader:
            if fields:
                yield line, fields
            line = reader.line_num + 1
    except csv.Error as error:
        raise csv.Error(f"from line {line} on the quotes do not match ({error})") from error


def _header_problems(line: int, header: list[str], delimiter: str) -> list[str]:
    """A wrong separator, and column names that occur twice."""
    others = [name for separator, name in SEPARATORS.items() if separator != delimiter and separator in "".join(header)]
    if len(header) == 1 and others:
        other = others[0]
        fix = {"tab": "name it .tsv", "comma": "name it .csv"}.get(other, "save it with commas")
        return [
            f"line {line} is one column, {header[0]!r}, with {other}s in it: "
            f"the separator is a {other}, not a {SEPARATORS[delimiter]}; {fix}"
        ]
    repeated = sorted({name for name in header if header.count(name) > 1})
    return [f"line {line}, the header, has the column {name!r} more than once" for name in repeated]


def _table_lines(lines: Iterable[str], name: str, delimiter: str) -> Iterator[Row]:
    """Rows of a stream. Raises DeltatuneError at the first line with another number of fields than the header."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
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


csv_lines = partial(_table_lines, delimiter=",")
tsv_lines = partial(_table_lines, delimiter="\t")

FORMATS = (
    FileFormat(read_csv, (".csv",), header=True, read_lines=csv_lines),
    FileFormat(read_tsv, (".tsv",), header=True, read_lines=tsv_lines),
)
