"""Rows that predict and evaluate read: a file in a data format, or a stream of texts, JSON lines or a table."""

from __future__ import annotations

import csv
import io
import itertools
import os
import re
import sys
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from deltatune.core.errors import DeltatuneError, nearest, raise_all

if TYPE_CHECKING:
    from deltatune.data import LabelKind
    from deltatune.data.formats.file_format import LineReader
    from deltatune.data.media.media_files import Inputs

Row = dict[str, Any]

NAME = re.compile(r"[\w.-]+")
"""What a column is called in a header; a text has more than this."""


def rows_from(file: str, columns: Sequence[str], every: bool = True) -> Iterator[Row]:
    """Rows of a file, or of stdin for "-"; each has all of the columns, or without `every` at least one of them.

    Files in a data format are read as `read` reads them. The first line of any other file decides, as that of stdin
    does. Raises DeltatuneError naming the line that cannot be used.
    """
    if file == "-":
        yield from parsed(_decoded(_stdin(), "stdin"), "stdin", None, columns, every)
        return
    from deltatune.core.input_validation.regular_files import check_regular, expanded
    from deltatune.data.formats import file_formats, missing_file, read_rows

    path = expanded(file)
    if os.path.lexists(path) and not path.is_file() and not path.is_dir():
        try:
            check_regular(path)
        except DeltatuneError as error:
            raise DeltatuneError(f"{error}; a stream is read from stdin: deltatune predict - < {path}") from None
    if any(not fmt.document for fmt in file_formats(path)):
        yield from _with_columns(read_rows(path), file, columns, every)
        return
    if not path.is_file():
        raise DeltatuneError(missing_file(path))
    check_regular(path)
    with path.open(encoding="utf-8-sig", newline="") as stream:
        yield from parsed(_decoded(stream, file), file, None, columns, every)


def rows_of_files(files: Sequence[str], reads: Inputs, columns: Sequence[str], every: bool = True) -> Iterator[Row]:
    """Rows of one file as `rows_from` reads it, or a row for each image or sound that is named, also by its folder.

    `reads` is what the adapter's columns hold. Raises DeltatuneError for several files of rows, for media files that
    it does not read, and for a folder without any.
    """
    from deltatune.core.input_validation.regular_files import expanded
    from deltatune.data.media.media_files import MediaFile, kind_of_name

    media = [file for file in files if kind_of_name(file) != "text" or (reads != "text" and expanded(file).is_dir())]
    if not media:
        if len(files) > 1:
            raise DeltatuneError(f"{len(files)} files are named: only image and sound files can be several at once")
        yield from rows_from(files[0], columns, every)
        return
    if reads == "text":
        raise DeltatuneError(f"{media[0]} is no file of texts, and this adapter reads texts")
    for file in files:
        path = expanded(file)
        inside = sorted(f for f in path.rglob("*") if kind_of_name(f.name) == reads) if path.is_dir() else [file]
        if not inside:
            raise DeltatuneError(f"{file} holds no {reads} files")
        yield from ({columns[0]: MediaFile(name)} for name in inside)


def _stdin() -> Iterable[str]:
    if sys.stdin is None:
        raise DeltatuneError("there is no stdin to read rows from; name a file")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8-sig", newline="")
    return sys.stdin


def _decoded(stream: Iterable[str], name: str) -> Iterator[str]:
    """The lines of a stream. Raises DeltatuneError for bytes that are not UTF-8, and for null characters of UTF-16."""
    number = 0
    try:
        for number, line in enumerate(stream, start=1):
            if "\0" in line and line.count("\0") > len(line) // 3:
                raise DeltatuneError(f"{name} line {number} looks like UTF-16; convert it: iconv -f UTF-16 -t UTF-8")
            yield line
    except UnicodeDecodeError as error:
        raise DeltatuneError(
            f"{name} is not UTF-8 after line {number} ({error.reason}); convert it: iconv -f OLD -t UTF-8"
        ) from None
    except OSError as error:
        raise DeltatuneError(f"cannot read {name}: {error.strerror or error}") from None


def parsed(
    lines: Iterator[str], name: str, reader: LineReader | None, columns: Sequence[str], every: bool = True
) -> Iterator[Row]:
    """Rows of lines. Without a reader the first line decides: an object is JSONL, the columns' names a CSV header."""
    first = next(lines, None)
    if first is None:
        return
    lines = itertools.chain([first], lines)
    reader = reader or _reader_of(first, columns)
    yield from _with_columns(reader(lines, name), name, columns, every) if reader else _texts(lines, name, columns)


def _reader_of(line: str, columns: Sequence[str]) -> LineReader | None:
    """The reader for a JSON object or for a header with the columns; None for a text."""
    from deltatune.data.formats.csv_tsv import csv_lines, tsv_lines
    from deltatune.data.formats.json_jsonl import jsonl_lines

    if line.lstrip().startswith("{") and not line.lstrip().startswith("{mask}"):  # a text may begin with a blank
        return jsonl_lines
    if line.strip() == "[" or re.match(r"\s*\[\s*\{\s*\"", line):
        raise DeltatuneError("this is a JSON list; give one object on each line, or name a file that ends in .json")
    for reader, separator in ((csv_lines, ","), (tsv_lines, "\t"), (csv_lines, ";")):
        header = next(csv.reader([line.rstrip("\r\n")], delimiter=separator), [])
        if set(columns) <= set(header):
            return reader
    _refuse_other_header(line.rstrip("\r\n"), columns)
    return None


def _refuse_other_header(line: str, columns: Sequence[str]) -> None:
    """Raise DeltatuneError for a header that has the columns in another case, or another separator."""
    for separator, name in ((",", ""), ("\t", ""), (";", ""), ("|", "bars")):
        header = line.split(separator)
        wanted = {column.lower() for column in columns}
        if len(header) > 1 and all(map(NAME.fullmatch, header)) and wanted <= {field.lower() for field in header}:
            fix = f"separate its columns with commas, not {name}" if name else "write the columns in this case"
            raise DeltatuneError(
                f"the first line, {line[:200]!r}, looks like a header; this adapter reads {', '.join(columns)}: {fix}"
            )


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


def _with_columns(rows: Iterable[Row], name: str, columns: Sequence[str], every: bool) -> Iterator[Row]:
    """The rows, after a check that each has all of the texts, or one of them."""
    from deltatune.data.published.forms import with_plain_columns

    for number, row in enumerate(rows, 1):
        if any(column not in row for column in columns):  # it may be in a published form, with nested columns
            row = with_plain_columns([row], columns, f"{name} row {number}", several=False)[0]
        missing = [column for column in columns if not row.get(column) and not isinstance(row.get(column), str)]
        if missing and (every or len(missing) == len(columns)):
            names = ", ".join(row) or "none"
            near = "" if missing[0] in row else nearest(missing[0], row)
            raise DeltatuneError(
                f"{name} row {number} has no text in column {missing[0]!r}{near}; its columns: {names}"
            )
        yield row


def given_columns(row: Row, answer: Container[str]) -> Row:
    """A row whose columns with the name of an answer are called `given_...`, which no other column is called."""
    names = {}
    for name in row:
        names[name] = new = f"given_{name}" if name in answer else name
        while new != name and (new in row or new in answer):
            names[name] = new = f"given_{new}"
    return {names[name]: value for name, value in row.items()}


def whole_file(task: Any, kind: LabelKind, source: str) -> tuple[list[Row], list[str]]:
    """All rows of one file in the layout of the task, none held out, and notes.

    Rows that the source marks as having no label are left out, and texts of one input are its references, as in `read`.
    """
    from deltatune.core.input_validation.regular_files import expanded
    from deltatune.data import examples, read_rows
    from deltatune.data.columns.choose_columns import Columns
    from deltatune.data.dataset import TASK_OF, columns_of
    from deltatune.data.layouts import LAYOUTS
    from deltatune.data.layouts.generation_rows import group_references
    from deltatune.data.layouts.label_values import join_indicators
    from deltatune.data.published.forms import with_plain_columns
    from deltatune.data.sources.class_names import names_of_file
    from deltatune.data.sources.labelled_splits import check_labelled, without_unknown

    rows = with_plain_columns(read_rows(source), [*task.text, *filter(None, [task.label])], source)
    rows = join_indicators({source: rows}, task.label or None)[source]
    if kind not in ("classes", "number"):
        rows = examples(rows, kind, task.text, task.label)
        return group_references(rows, task.text, source) if kind == "text" else (rows, [])
    names = columns_of(rows)
    if missing := [name for name in (*task.text, task.label) if rows and name not in names]:
        absent = " and ".join(f"no column {name!r}{nearest(name, names)}" for name in missing)
        without = " Without labels there is nothing to score: `deltatune predict` needs none."
        raise DeltatuneError(
            f"{source} has {absent}; its columns: {', '.join(map(repr, names))}."
            f"{without if task.label in missing else ''}"
        )
    check_labelled(rows, task.label, source)
    splits, notes = without_unknown({source: rows}, task.label, names_of_file(expanded(source)))
    converted = LAYOUTS[TASK_OF[kind]].convert(splits, Columns(tuple(task.text), task.label), (kind,))
    raise_all(converted.problems)
    return converted.splits[source], notes
