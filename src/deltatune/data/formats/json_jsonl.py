"""JSON Lines, one object per line; and JSON, a list of objects. An object is a row."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from deltatune.core.errors import DeltatuneError
from deltatune.core.input_validation import strict_json
from deltatune.data.dataset import Row
from deltatune.data.formats.file_format import (
    FileFormat,
    first_few,
    raise_malformed,
    read_text,
    rows_and_problems,
    until_malformed,
)

LINES_FIX = 'Each line must be one object such as {"text": "...", "label": "..."}, a missing value null.'
SEVERAL = "extra data"
"""What JSON readers call a second value after the first."""


def read_jsonl(path: Path) -> list[Row]:
    """One JSON object per line; blank lines are skipped."""
    return _json_lines(path, read_text(path))


def jsonl_lines(lines: Iterable[str], name: str) -> Iterator[Row]:
    """Rows of a stream. Raises DeltatuneError at the first line that is not a JSON object."""
    return until_malformed(_rows(lines), name, LINES_FIX)


def _json_lines(path: Path, text: str) -> list[Row]:
    rows, problems = rows_and_problems(_rows(text.split("\n")))  # not splitlines: U+2028 may occur in a JSON string
    raise_malformed(path, problems, LINES_FIX)
    return rows


def _rows(lines: Iterable[str]) -> Iterator[Row | str]:
    """The row of each line that is not blank, or what is wrong with it."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = strict_json.loads(line, f"line {number}")
        except DeltatuneError as error:
            yield _line_problem(number, str(error), "\r" in line.rstrip("\r\n"))
            continue
        yield value if isinstance(value, dict) else f"line {number} is a JSON {_kind(value)}, not an object"


def _line_problem(number: int, error: str, returns: bool) -> str:
    """The error of one line as a problem of its file."""
    problem = error.removeprefix(f"cannot read line {number}")
    problem = re.sub(r"\(line 1, column (\d+)\)$", r"(column \1)", problem)
    problem = f"line {number}" + problem.replace(" as JSON: ", " is not JSON: ", 1)
    mac = returns and SEVERAL in problem
    return problem + (
        "; it has carriage returns, the line ends of old Macs: convert them, tr '\\r' '\\n'" if mac else ""
    )


def _kind(value: Any) -> str:
    names = {list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def read_json(path: Path) -> list[Row]:
    """A JSON list of objects. One object per line, which some tools name .json, is read as JSON Lines."""
    text = read_text(path)
    try:
        value = strict_json.loads(text, path)
    except DeltatuneError as error:
        if SEVERAL in str(error) and text.lstrip().startswith("{"):
            return _json_lines(path, text)
        raise
    if isinstance(value, dict):
        keys = first_few([repr(key)[:60] for key in value])
        raise DeltatuneError(f"{path} holds one object with the keys {keys}; a list of objects is needed.")
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise DeltatuneError(f"{path} must hold a list of objects, one for each row.")
    return value


FORMATS = (
    FileFormat(read_jsonl, (".jsonl", ".ndjson")),
    FileFormat(read_json, (".json",)),
)
