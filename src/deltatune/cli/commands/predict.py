"""`deltatune predict`: use a trained adapter on a stream of rows, texts or a table with the task's columns."""

from __future__ import annotations

import csv
import io
import itertools
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from deltatune.cli.options import (
    DATA,
    OUTPUT,
    Adapter,
    InferenceFields,
    OtherBase,
    OtherModel,
    Weight,
    option,
    read_fields,
)
from deltatune.cli.ui.error_screen import Interrupted, silence_stdout
from deltatune.cli.ui.screen import plural
from deltatune.comparison.report.number_format import count
from deltatune.core.errors import DeltatuneError, nearest
from deltatune.core.strict_json import dumps

if TYPE_CHECKING:
    from deltatune.data.formats.file_format import LineReader
    from deltatune.training.session import Session

Row = dict[str, Any]


def rows_from(file: str, columns: Sequence[str], every: bool = True) -> Iterator[Row]:
    """Rows of a file, or of stdin for "-"; each has all of the columns, or without `every` at least one of them.

    Formats with a `read_lines` are read line by line, other data formats as a whole. The first line of any other file
    decides, as that of stdin does. Raises DeltatuneError naming the line that cannot be used.
    """
    if file == "-":
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(encoding="utf-8-sig")
        yield from parsed(_decoded(sys.stdin), "stdin", None, columns, every)
        return
    from deltatune.data.formats import file_formats, read_rows

    path = Path(file).expanduser()
    formats = [fmt for fmt in file_formats(path) if not fmt.document]
    reader = next((fmt.read_lines for fmt in formats if fmt.read_lines), None)
    if not path.is_file() or (formats and reader is None):
        yield from _with_columns(read_rows(path), file, columns, every)  # raises where there is no such file
        return
    with path.open(encoding="utf-8-sig", newline="") as stream:
        yield from parsed(_decoded(stream, file), file, reader, columns, every)


def _decoded(stream: Iterable[str], name: str = "stdin") -> Iterator[str]:
    try:
        yield from stream
    except UnicodeDecodeError as error:
        raise DeltatuneError(f"{name} is not UTF-8 ({error.reason}); convert it: iconv -f OLD -t UTF-8") from None


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

    if line.lstrip().startswith("{"):
        return jsonl_lines
    for reader, separator in ((csv_lines, ","), (tsv_lines, "\t")):
        header = next(csv.reader([line.rstrip("\r\n")], delimiter=separator), [])
        if set(columns) <= set(header):
            return reader
    return None


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
        typer.Argument(
            metavar="FILE", help="Texts, one per line, or rows in a data format that evaluate reads; - is stdin."
        ),
    ] = "-",
    *,
    adapter: Adapter,
    model: OtherModel = None,
    other_base: OtherBase = False,
    fields: InferenceFields = None,
    weight: Weight = 1.0,
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
    `tags`, for questions `answer` and its position, for generation `output`, for language modelling `perplexity`. With
    --weight, `weight` is that number. An input column with one of these names becomes `given_label`, and so on.

      echo "a lovely film" | deltatune predict --adapter runs/train-reviews-lora-r-8
      deltatune predict --adapter runs/train-reviews-lora-r-8 new.csv --out labelled.jsonl
      deltatune predict --adapter runs/train-recipes-lora-r-8 --set temperature=0.8 --set top_p=0.9 dishes.txt
    """
    from deltatune.training.session import open_adapter

    session = open_adapter(adapter, model, other_base, read_fields(fields)).weighted(weight)
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
    weight = {} if session.weight == 1 else {"weight": session.weight}
    for row, answer in zip(rows, session.task.decode(answers), strict=True):
        target.write(dumps(joined(row, answer, weight), nonfinite="null", ensure_ascii=not utf8) + "\n")
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


def joined(row: dict[str, Any], answer: dict[str, Any], more: dict[str, Any] | None = None) -> dict[str, Any]:
    """A row with its answer and more; columns of the row with the same name are renamed."""
    if "value" in answer:
        answer = {"score": answer["value"]}
    elif "text" in answer:
        answer = {"output": answer["text"]}
    else:
        answer = rounded(answer)
    answer = answer | (more or {})
    return {f"given_{name}" if name in answer else name: value for name, value in row.items()} | answer
