"""JSON Lines, one object per line; and JSON, a list of objects. An object is a row."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from deltatune.core.errors import DeltatuneError
from deltatune.data.dataset import Row
from deltatune.data.formats.file_format import FileFormat, first_few, raise_malformed, read_text

LINES_FIX = 'Each line must be one object such as {"text": "...", "label": "..."}.'


def read_jsonl(path: Path) -> list[Row]:
    """One JSON object per line; blank lines are skipped."""
    return _json_lines(path, read_text(path))


def jsonl_lines(lines: Iterable[str], name: str) -> Iterator[Row]:
    """Rows of a stream. Raises DeltatuneError at the first line that is not a JSON object."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DeltatuneError(f"{name} line {number} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise DeltatuneError(f"{name} line {number} is a JSON {type(row).__name__}, not an object")
        yield row


def _json_lines(path: Path, text: str) -> list[Row]:
    rows: list[Row] = []
    problems = []
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: U+2028 may occur inside a JSON string
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
    raise_malformed(path, problems, LINES_FIX)
    return rows


def read_json(path: Path) -> list[Row]:
    """A JSON list of objects. One object per line, which some tools name .json, is read as JSON Lines."""
    text = read_text(path)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            return _json_lines(path, text)
        raise DeltatuneError(f"{path} is not JSON: {error}.") from None
    if isinstance(value, dict):
        keys = first_few([repr(key) for key in value])
        raise DeltatuneError(f"{path} holds one object with the keys {keys}; a list of objects is needed.")
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise DeltatuneError(f"{path} must hold a list of objects, one for each row.")
    return value


FORMATS = (
    FileFormat(read_jsonl, (".jsonl", ".ndjson"), read_lines=jsonl_lines),
    FileFormat(read_json, (".json",)),
)
