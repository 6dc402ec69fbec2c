"""CSV and TSV files: a header line with the column names, then one row per line. CSV has commas, or semicolons."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

from deltatune.data.dataset import Row
from deltatune.data.formats.file_format import (
    FileFormat,
    raise_malformed,
    read_text,
    rows_and_problems,
    until_malformed,
)

SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
LONGEST_FIELD = 2**31 - 1
"""Characters of a field; the default of `csv`, 128 KiB, is less than a long document."""

CSV_FIX = "A text with a comma or a line break in it must be in double quotes."
TSV_FIX = "A tab separates fields; a text with a tab in it must be in double quotes."


def read_csv(path: Path) -> list[Row]:
    """Separated by commas, or by semicolons as spreadsheets write it where numbers have a decimal comma.

    Quoted with double quotes (RFC 4180).
    """
    rows, problems = rows_and_problems(_csv_rows(_lines(read_text(path))))
    raise_malformed(path, problems, CSV_FIX)
    return rows


def read_tsv(path: Path) -> list[Row]:
    """Tab-separated, with CSV's quoting if the file follows it, else with quotes as ordinary characters (as in GLUE).

    A header in quotes says that it does. Else, under CSV's quoting, a stray quote at the start of a field swallows line
    ends. So where both readings succeed, the one with more rows is right.
    """
    return _tsv(read_text(path), path)


def csv_lines(lines: Iterable[str], name: str) -> Iterator[Row]:
    """Rows of a stream. Raises DeltatuneError at the first record that `read_csv` would refuse."""
    return until_malformed(_csv_rows(lines), name, CSV_FIX)


def tsv_lines(lines: Iterable[str], name: str) -> Iterator[Row]:
    """Rows of a stream, which is read to its end: only the whole shows how it is quoted."""
    yield from _tsv("".join(lines), name)


def _tsv(text: str, name: str | Path) -> list[Row]:
    quoted_rows, quoted_problems = _table(_lines(text), "\t", csv.QUOTE_MINIMAL)
    quoted_header = _has_quoted_header(text)
    if quoted_header and not quoted_problems:
        return quoted_rows
    rows, problems = _table(_lines(text), "\t", csv.QUOTE_NONE)
    if not quoted_problems and (problems or len(quoted_rows) >= len(rows)):
        return quoted_rows
    raise_malformed(name, quoted_problems if quoted_header else problems, TSV_FIX)
    return rows


def _csv_rows(lines: Iterable[str]) -> Iterator[Row | str]:
    """Rows and problems; where the header has semicolons and no comma outside quotes, semicolons separate fields."""
    lines = iter(lines)
    start = list(_up_to_text(lines))
    line = start[-1].rstrip("\r\n") if start else ""
    fields = {separator: len(next(csv.reader([line], delimiter=separator), [])) for separator in ",;"}
    separator = ";" if fields[";"] > 1 and fields[","] == 1 else ","
    return _rows(itertools.chain(start, lines), separator, csv.QUOTE_MINIMAL)


def _up_to_text(lines: Iterator[str]) -> Iterator[str]:
    """Take the lines up to the first that is not blank."""
    for line in lines:
        yield line
        if line.strip():
            return


def _lines(text: str) -> Iterable[str]:
    return io.StringIO(text, newline="")


def _has_quoted_header(text: str) -> bool:
    """Whether every name of the first line is in double quotes."""
    names = text.partition("\n")[0].rstrip("\r").split("\t")
    return all(len(name) >= 2 and name[0] == name[-1] == '"' for name in names)


def _table(lines: Iterable[str], delimiter: str, quoting: int) -> tuple[list[Row], list[str]]:
    """Rows and problems of delimited lines with a header."""
    return rows_and_problems(_rows(lines, delimiter, quoting))


def _rows(lines: Iterable[str], delimiter: str, quoting: int) -> Iterator[Row | str]:
    """The row of each record, or what is wrong with it; a wrong header or quotes that do not match end the reading."""
    records = _records(lines, delimiter, quoting)
    try:
        line, header = next(records, (1, []))
        header_problems = _header_problems(line, header, delimiter)
        yield from header_problems
        if header_problems:
            return
        unnamed = [i for i, name in enumerate(header) if i and not name.strip()]  # the first: row numbers of pandas
        for line, fields in records:
            if len(fields) == len(header):
                if fields[-1] == header[-1] and _is_header(fields, header):
                    yield f"line {line} is the header again, as where two files were joined: remove it"
                for i in unnamed:
                    if fields[i].strip():
                        yield f"line {line} has a value in column {i + 1}, which has no name in the header"
                yield dict(zip(header, fields, strict=True))
            elif any(field.strip() for field in fields):
                count = "1 field" if len(fields) == 1 else f"{len(fields)} fields"
                yield f"line {line} has {count}, the header has {len(header)} ({_names(header)})"
    except csv.Error as error:
        yield str(error)


def _is_header(fields: list[str], header: list[str]) -> bool:
    """Whether a record of several fields repeats the header, perhaps behind the byte-order mark of its own file."""
    return len(header) > 1 and [fields[0].removeprefix("\ufeff"), *fields[1:]] == header


def _names(header: list[str]) -> str:
    names = ", ".join(header)
    return names if len(names) <= 200 else f"{names[:197]}..."


def _records(lines: Iterable[str], delimiter: str, quoting: int) -> Iterator[tuple[int, list[str]]]:
    """(first line, fields) of each record that is not a blank line. Raises csv.Error naming the line."""
    reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)  # type: ignore[arg-type]
    line = 1
    while True:
        old_limit = csv.field_size_limit(LONGEST_FIELD)
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise csv.Error(f"from line {line} on the quotes do not match ({error})") from error
        finally:
            csv.field_size_limit(old_limit)
        if fields is None:
            return
        if fields:
            yield line, fields
        line = reader.line_num + 1


def _header_problems(line: int, header: list[str], delimiter: str) -> list[str]:
    """A wrong separator, and column names that occur twice."""
    tried = ",;" if delimiter == "," else delimiter
    others = [name for separator, name in SEPARATORS.items() if separator not in tried and separator in "".join(header)]
    if len(header) == 1 and others:
        other = others[0]
        fix = {"tab": "name it .tsv", "bar": "save it with commas"}.get(other, "name it .csv")
        return [
            f"line {line} is one column, {header[0][:200]!r}, with {other}s in it: "
            f"the separator is a {other}, not a {SEPARATORS[delimiter]}; {fix}"
        ]
    repeated = sorted({name for name in header if header.count(name) > 1}) if len(set(header)) < len(header) else []
    problems = [f"line {line}, the header, has the column {name[:200]!r} more than once" for name in repeated]
    problems += [
        f"line {line}, the header, has the column {name[:200]!r}: a quote behind a blank quotes nothing: remove it"
        for name in header
        if delimiter == ","
        and name[:1].isspace()
        and len(name.strip()) > 1
        and name.strip()[0] == name.strip()[-1] == '"'
    ]
    marked = [name for name in header if "\ufeff" in name]
    problems += [f"line {line}, the header, has a byte-order mark in {name[:200]!r}: remove it" for name in marked]
    return problems


FORMATS = (
    FileFormat(read_csv, (".csv",), header=True),
    FileFormat(read_tsv, (".tsv",), header=True),
)
