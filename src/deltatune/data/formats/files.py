"""One file -> rows. Nothing is stripped or skipped silently: an unclean table is an error with line numbers."""

from __future__ import annotations

import csv
import importlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from deltatune.core.errors import DeltatuneError, nearest
from deltatune.data.formats import conll, conllu, squad

Row = dict[str, Any]

SHOWN = 5  # problems of one kind that an error lists before it counts the rest


def read_rows(path: str | Path) -> list[Row]:
    """The rows of one file, each a dict of column to value.

    CSV and TSV values are strings. JSON is a list of objects, or SQuAD's nesting, one row a question. CoNLL files have
    one row a sentence with `tokens` and `tags`. A plain text file is one row, `text`.
    Raises DeltatuneError for a missing, empty or malformed file.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise DeltatuneError(missing(path))
    if path.suffix.lower() not in READERS:
        raise DeltatuneError(f"{path}: unknown format {path.suffix!r}. Known formats: {', '.join(READERS)}.")
    if path.stat().st_size == 0:
        raise DeltatuneError(f"{path} is empty.")
    rows = READERS[path.suffix.lower()](path)
    if not rows:
        raise DeltatuneError(f"{path} holds no rows.")
    return rows


def missing(path: Path) -> str:
    """What to say of a file that is not there: the nearest name beside it, and what else the folder holds."""
    if path.is_dir():
        return f"{path} is a folder; a file is needed here."
    if not path.parent.is_dir():
        return f"no file {path}: there is no folder {path.parent}."
    names = sorted(item.name for item in path.parent.iterdir() if item.suffix.lower() in READERS)
    listing = (
        f" Data files in {path.parent}: {some(names)}." if names else f" There are no data files in {path.parent}."
    )
    return f"no file {path}{nearest(path.name, names) or '.'}{listing}"


def some(items: list[str], shown: int = SHOWN) -> str:
    """The first few of a list, and how many more there are."""
    more = f", and {len(items) - shown} more" if len(items) > shown else ""
    return ", ".join(items[:shown]) + more


def _text(path: Path) -> str:
    """The file as text: UTF-8, with or without a byte-order mark."""
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        kind = "UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "some other encoding"
        raise DeltatuneError(
            f"{path} line {line}: not UTF-8 (it looks like {kind}). Save the file as UTF-8, "
            "or convert it: iconv -f OLD -t UTF-8."
        ) from None


# --- CSV and TSV ---


def _csv(path: Path) -> list[Row]:
    """Comma-separated, quoted with double quotes as RFC 4180 has it."""
    rows, problems = _table(_text(path), ",", csv.QUOTE_MINIMAL)
    return _clean(path, rows, problems, "A text with a comma or a line break in it must stand in double quotes.")


def _tsv(path: Path) -> list[Row]:
    """Tab-separated, with CSV's quoting if the file follows it, else with quotes as ordinary characters (as GLUE).

    A stray quote at the start of a field makes CSV's quoting run over the ends of lines, so where both readings are
    clean, the one with more rows is right.
    """
    text = _text(path)
    quoted, quoted_problems = _table(text, "\t", csv.QUOTE_MINIMAL)
    plain, problems = _table(text, "\t", csv.QUOTE_NONE)
    if not quoted_problems and (problems or len(quoted) >= len(plain)):
        plain, problems = quoted, []
    return _clean(path, plain, problems, "A tab separates fields; it cannot stand in a text without double quotes.")


def _clean(path: Path, rows: list[Row], problems: list[str], fix: str) -> list[Row]:
    """The rows, or one error with the file's problems."""
    if problems:
        shown = "".join(f"\n  {problem}" for problem in problems[:SHOWN])
        more = f"\n  and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise DeltatuneError(f"{path} is not a clean table:{shown}{more}\n{fix}")
    return rows


def _table(text: str, delimiter: str, quoting: int) -> tuple[list[Row], list[str]]:
    """Rows and problems of a delimited text with a header line."""
    rows: list[Row] = []
    records = _records(text, delimiter, quoting)
    old_limit = csv.field_size_limit(2**31 - 1)  # the default of 128 KiB is less than a long document
    problems: list[str] = []
    try:
        line, header = next(records, (1, []))
        problems += _header_problems(line, header, delimiter)
        if problems:
            return [], problems
        for line, fields in records:
            if len(fields) == len(header):
                rows.append(dict(zip(header, fields, strict=True)))
            elif any(field.strip() for field in fields):
                names = ", ".join(header)
                count = "1 field" if len(fields) == 1 else f"{len(fields)} fields"
                problems.append(f"line {line} has {count}, the header has {len(header)} ({names})")
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
    """A separator that is not the expected one, and names that occur twice."""
    others = {"comma": ",", "semicolon": ";", "tab": "\t", "bar": "|"}
    expected = next(name for name, character in others.items() if character == delimiter)
    used = [name for name, character in others.items() if character != delimiter and character in "".join(header)]
    if len(header) == 1 and used:
        ending = "name it .tsv" if used[0] == "tab" else "name it .csv" if used[0] == "comma" else "save it with commas"
        return [
            f"line {line} is one column, {header[0]!r}, with {used[0]}s in it: "
            f"the separator is a {used[0]}, not a {expected}; {ending}"
        ]
    twice = sorted({name for name in header if header.count(name) > 1})
    return [f"line {line}, the header, has the column {name!r} more than once" for name in twice]


# --- CoNLL and plain text ---


def _conll(path: Path) -> list[Row]:
    """One word a line."""
    rows, problems = conll.parse(_text(path))
    return _clean(path, rows, problems, conll.FIX)


def _conllu(path: Path) -> list[Row]:
    """Ten columns a word."""
    rows, problems = conllu.parse(_text(path))
    return _clean(path, rows, problems, conllu.FIX)


def _plain(path: Path) -> list[Row]:
    """One document; blank lines in it separate its paragraphs."""
    text = _text(path).replace("\r\n", "\n")
    if conll.looks_like_conll(text):
        raise DeltatuneError(f"{path} has a word and a tag in each line, as CoNLL files have it: name it .conll.")
    return [{"text": text}]


# --- JSON and Parquet ---


def _jsonl(path: Path) -> list[Row]:
    """One JSON object a line; blank lines are skipped."""
    return _json_lines(path, _text(path))


def _json_lines(path: Path, text: str) -> list[Row]:
    rows: list[Row] = []
    problems = []
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: U+2028 may stand inside a JSON string
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            problems.append(f"line {number} is not JSON: {error}")
            continue
        if isinstance(value, dict):
            rows.append(value)
        else:
            problems.append(f"line {number} is a JSON {type(value).__name__}, not an object")
    return _clean(path, rows, problems, 'Each line must be one object such as {"text": "...", "label": "..."}.')


def _json(path: Path) -> list[Row]:
    """A JSON list of objects or SQuAD's nesting; one object a line, as some tools name .json, is read as JSONL."""
    text = _text(path)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            return _json_lines(path, text)
        raise DeltatuneError(f"{path} is not JSON: {error}.") from None
    if squad.is_squad(value):
        rows, problems = squad.rows(value)
        return _clean(path, rows, problems, "Each paragraph needs a context and qas, each of these a question.")
    if isinstance(value, dict):
        keys = some([repr(key) for key in value])
        raise DeltatuneError(f"{path} holds one object with the keys {keys}; a list of objects is needed.")
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise DeltatuneError(f"{path} must hold a list of objects, one a row.")
    return value


def _parquet(path: Path) -> list[Row]:
    """Parquet through pyarrow."""
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise DeltatuneError(f'{path}: Parquet needs pyarrow. Install it: pip install "deltatune[data]"') from None
    try:
        rows: list[Row] = parquet.read_table(path).to_pylist()
    except (ValueError, OSError) as error:  # pyarrow's own errors derive from these two
        raise DeltatuneError(f"{path} is not a readable Parquet file: {str(error).splitlines()[0]}") from None
    return rows


READERS: dict[str, Callable[[Path], list[Row]]] = {
    ".csv": _csv,
    ".tsv": _tsv,
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".parquet": _parquet,
    ".txt": _plain,
    **dict.fromkeys(conll.ENDINGS, _conll),
    conllu.ENDING: _conllu,
}
