"""`deltatune predict`: use a trained adapter on a stream of rows, texts or a table with the task's columns."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from deltatune.cli.options import DATA, OUTPUT, Adapter, InferenceFields, OtherBase, OtherModel, option, read_fields
from deltatune.cli.ui.error_screen import Interrupted, silence_stdout
from deltatune.cli.ui.screen import plural
from deltatune.comparison.report.number_format import count
from deltatune.core.errors import DeltatuneError, nearest

if TYPE_CHECKING:
    from deltatune.training.session import Session

Row = dict[str, Any]
BY_SUFFIX = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv"}
WHOLE_FILE = (".json", ".parquet")
"""Formats that are not read line by line."""


def rows_from(file: str, columns: Sequence[str], every: bool = True) -> Iterator[Row]:
    """Rows of a file, or of stdin for "-"; each has all of the columns, or without `every` at least one of them.

    Raises DeltatuneError naming the line that cannot be used.
    """
    if file == "-":
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(encoding="utf-8-sig")
        yield from parsed(_decoded(sys.stdin), "stdin", None, columns, every)
        return
    path = Path(file).expanduser()
    if not path.is_file() or path.suffix.lower() in WHOLE_FILE:
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
    """Rows of lines. Without a kind the first line decides: an object is JSONL, the columns' names are a CSV header."""
    first = next(lines, None)
    if first is None:
        return
    lines = itertools.chain([first], lines)
    kind = kind or format_of_line(first, columns)
    if kind == "jsonl":
        yield from _with_columns(_objects(lines, name), name, columns, every)
    elif kind in ("csv", "tsv"):
        yield from _with_columns(_table(lines, name, "," if kind == "csv" else "\t"), name, columns, every)
    else:
        yield from _texts(lines, name, columns)


def format_of_line(line: str, columns: Sequence[str]) -> str:
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
    """The rows, after a check that each has all of the texts, or one of them."""
    for number, row in enumerate(rows, 1):
        missing = [column for column in columns if not row.get(column) and not isinstance(row.get(column), str)]
        if missing and (every or len(missing) == len(columns)):
            names = ", ".join(row) or "none"
            near = nearest(missing[0], row)
            raise DeltatuneError(
                f"{name} row {number} has no text in column {missing[0]!r}{near}; its columns: {names}"
            )
        yield row


DIGITS = 6
"""Decimals of probabilities."""


def predict(
    file: Annotated[
        str,
        typer.Argument(metavar="FILE", help="Texts, one per line, or a CSV, TSV, JSONL or Parquet file; - is stdin."),
    ] = "-",
    *,
    adapter: Adapter,
    model: OtherModel = None,
    other_base: OtherBase = False,
    fields: InferenceFields = None,
    batch_size: Annotated[
        int,
        option("--batch-size", panel=DATA, metavar="ROWS", help="Rows of a batch.", min=1),
    ] = 32,
    out: Annotated[
        Path | None,
        option(
            "--out",
            "-o",
            panel=OUTPUT,
            metavar="FILE",
            help="Output file, written when all rows are done. Default: stdout.",
        ),
    ] = None,
) -> None:
    """Use a trained adapter: reads texts, prints JSON lines in the same order.

    A line of input is one text; for an adapter that reads pairs, two texts with a tab between them. Rows of CSV or
    JSONL need the columns of the training; their other columns are copied. A line of output has the texts, `label`,
    `score` (its probability) and `scores` (of every label); for regression only `score`, the number; for tagging
    `tags`, for questions `answer` and its position, for generation `output`, for language modelling `perplexity`. An
    input column with one of these names becomes `given_label`, and so on.

      echo "a lovely film" | deltatune predict --adapter runs/train-reviews-lora-r-8
      deltatune predict --adapter runs/train-reviews-lora-r-8 new.csv --out labelled.jsonl
      deltatune predict --adapter runs/train-recipes-lora-r-8 --set temperature=0.8 --set top_p=0.9 dishes.txt
    """
    from deltatune.training.session import open_adapter

    session = open_adapter(adapter, model, other_base, read_fields(fields))
    if file == "-" and sys.stdin.isatty():
        print("Type texts, one per line; Ctrl-D ends.", file=sys.stderr)
        batch_size = 1
    columns = list(session.task.text)
    done, truncated = 0, 0
    draft = out.with_name(f".{out.name}.{os.getpid()}") if out else None
    try:
        with ExitStack() as stack:
            target: TextIO = stack.enter_context(draft.open("w", encoding="utf-8")) if draft else sys.stdout
            every = session.task.answers != "text"  # the input of an instruction may be empty
            for rows in batched(rows_from(file, columns, every), batch_size):
                truncated += write(session, rows, target)
                done += len(rows)
        if draft and out:
            draft.replace(out)
            print(f"{count(done)} rows: {out}", file=sys.stderr)
        if truncated:
            print(f"{plural(truncated, 'text')} truncated to the adapter's limit", file=sys.stderr)
    except BrokenPipeError:
        silence_stdout()  # the reader has closed the pipe
    except KeyboardInterrupt:
        raise Interrupted(f"{count(done)} rows were {'labelled, none kept' if out else 'written'}") from None
    finally:
        if draft:
            draft.unlink(missing_ok=True)


def batched(rows: Iterator[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    """Lists of `size` rows, the last one shorter."""
    while batch := list(itertools.islice(rows, size)):
        yield batch


def write(session: Session, rows: list[dict[str, Any]], target: TextIO) -> int:
    """Predict some rows and write them; returns the number of truncated rows."""
    encoded = session.encode(shaped(session, rows), labelled=False)
    answers = session.predict(encoded, len(rows))
    utf8 = (target.encoding or "").lower().replace("-", "") == "utf8"
    for row, answer in zip(rows, session.task.decode(answers), strict=True):
        target.write(json.dumps(joined(row, answer), ensure_ascii=not utf8) + "\n")
    target.flush()
    return encoded.truncated


def shaped(session: Session, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows in the layout that the task reads: words in lists, tables in one line."""
    from deltatune.data import inputs
    from deltatune.data.dataset import TASK_OF

    task: Any = session.task
    if task.answers == "text" and len(task.text) > 1:
        rows = [{**dict.fromkeys(task.text, ""), **row} for row in rows]
    return inputs(rows, TASK_OF[task.label_kind], task.text)


def rounded(value: Any) -> Any:
    """Plain data with its numbers rounded."""
    if isinstance(value, float):
        return round(value, DIGITS)
    return {name: rounded(one) for name, one in value.items()} if isinstance(value, dict) else value


def joined(row: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    """A row with its answer; columns of the row with the same name are renamed."""
    if "value" in answer:
        answer = {"score": answer["value"]}
    elif "text" in answer:
        answer = {"output": answer["text"]}
    else:
        answer = rounded(answer)
    return {f"given_{name}" if name in answer else name: value for name, value in row.items()} | answer
