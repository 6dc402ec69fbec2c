"""`deltatune predict`: use a trained adapter on a stream of rows, texts or a table with the task's columns."""

from __future__ import annotations

import csv
import io
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltatune.cli.fill_rows import FILL, Filler, check_task
from deltatune.cli.mixture_options import Part, check_single
from deltatune.cli.options import (
    DATA,
    OUTPUT,
    InferenceFields,
    OtherBase,
    OtherModel,
    Weight,
    option,
    read_fields,
)
from deltatune.cli.ui.error_screen import Interrupted, silence_stdout
from deltatune.cli.ui.output_file import checked_output, draft_of
from deltatune.cli.ui.screen import plural
from deltatune.comparison.report.number_format import count
from deltatune.core.errors import DeltatuneError, nearest

if TYPE_CHECKING:
    from deltatune.data.formats.file_format import LineReader
    from deltatune.training.session import Session

Row = dict[str, Any]


def rows_from(file: str, columns: Sequence[str], every: bool = True) -> Iterator[Row]:
    """Rows of a file, or of stdin for "-"; each has all of the columns, or without `every` at least one of them.

    Files in a data format are read as `read` reads them. The first line of any other file decides, as that of stdin
    does. Raises DeltatuneError naming the line that cannot be used.
    """
    if file == "-":
        yield from parsed(_decoded(_stdin(), "stdin"), "stdin", None, columns, every)
        return
    from deltatune.core.regular_files import check_regular
    from deltatune.data.formats import file_formats, missing_file, read_rows

    path = Path(file).expanduser()
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

    if line.lstrip().startswith("{"):
        return jsonl_lines
    if line.strip() == "[" or re.match(r"\s*\[\s*\{\s*\"", line):
        raise DeltatuneError("this is a JSON list; give one object on each line, or name a file that ends in .json")
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
    from deltatune.data.published.forms import with_plain_columns

    for number, row in enumerate(rows, 1):
        if any(column not in row for column in columns):  # it may be in a published form, with nested columns
            row = with_plain_columns([row], columns, f"{name} row {number}", several=False)[0]
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
    adapter: Annotated[
        str | None,
        option(
            "--adapter",
            "-a",
            panel=DATA,
            metavar="FOLDER",
            help="A trained adapter, or the folder of its training run.",
        ),
    ] = None,
    model: OtherModel = None,
    task: Annotated[
        str | None,
        option(
            "--task",
            panel=DATA,
            metavar="fill",
            help="fill: the words at each {mask} of a text, by --model's own head.",
        ),
    ] = None,
    top: Annotated[
        int, option("--top", panel=DATA, metavar="NUMBER", help="With --task fill: words of each mask.", min=1)
    ] = 5,
    label: Annotated[
        str | None,
        option(
            "--label", panel=DATA, metavar="COLUMN", help="With --task fill: the missing word; prints its rank and P@k."
        ),
    ] = None,
    other_base: OtherBase = False,
    part: Part = None,
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
            help="Output file (.jsonl, .json, .csv, .tsv or .parquet), written when all rows are done. Default: JSON "
            "lines on stdout.",
        ),
    ] = None,
) -> None:
    """Use a trained adapter: reads texts, prints JSON lines in the same order, or writes a file.

    A line of input is one text; for an adapter that reads pairs, two texts with a tab between them. Rows of CSV or
    JSONL need the columns of the training; their other columns are copied. A line of output has the texts, `label`,
    `score` (its probability) and `scores` (of every label); for regression only `score`, the number; for tagging
    `tags`, for questions `answer` and its position, for generation `output`, for language modelling `perplexity`. With
    --weight, `weight` is that number. An input column with one of these names becomes `given_label`, and so on.

      echo "a lovely film" | deltatune predict --adapter runs/train-reviews-lora-r-8
      deltatune predict --adapter runs/train-reviews-lora-r-8 new.csv --out labelled.jsonl
      deltatune predict --adapter runs/train-recipes-lora-r-8 --set temperature=0.8 --set top_p=0.9 dishes.txt
      deltatune predict --task fill --model bert-base-uncased sentences-with-masks.txt
    """
    if task is None and adapter is None:
        raise DeltatuneError("--adapter is needed: the folder of a trained adapter")
    check_task(task, {"--label": label, "--set": fields} if task is None else {"--set": fields})
    from deltatune.data.write_rows import check_suffix, row_writer
    from deltatune.training.session import open_adapter

    target, suffix = None, ""
    if out is not None:
        suffix = out.suffix.lower()
        check_suffix(suffix, f"--out {out}")
        target = checked_output(out, [name for name in (file if file != "-" else None, adapter) if name is not None])
    answer: Callable[[list[Row], Callable[[Iterable[Row]], None]], int]
    filler = None
    if task == FILL or adapter is None:
        filler = Filler(adapter, model, other_base, top, label, weight)
        answer, columns, every = filler.write, [filler.text], True
    else:
        session = open_adapter(adapter, model, other_base, read_fields(fields), part).weighted(weight)
        check_single(session.task)
        answer, columns = partial(write, session), list(session.task.text)
        every = session.task.answers != "text"  # the input of an instruction may be empty
    if file == "-" and sys.stdin is not None and sys.stdin.isatty():
        print("Type texts, one per line; Ctrl-D ends.", file=sys.stderr)
        batch_size = 1
    done, truncated = 0, 0
    try:
        with ExitStack() as stack:
            put: Callable[[Iterable[Row]], None] = print_rows
            if target is not None:
                put = stack.enter_context(row_writer(stack.enter_context(draft_of(target)), suffix))
            for rows in batched(rows_from(file, columns, every), batch_size):
                truncated += answer(rows, put)
                done += len(rows)
        if out:
            print(f"{count(done)} rows: {out}", file=sys.stderr)
        if filler:
            filler.summarise()
        if truncated:
            print(f"{plural(truncated, 'text')} truncated to the adapter's limit", file=sys.stderr)
    except BrokenPipeError:
        silence_stdout()  # the reader has closed the pipe
    except KeyboardInterrupt:
        raise Interrupted(f"{count(done)} rows were {'labelled, none kept' if out else 'written'}") from None


def print_rows(rows: Iterable[Row]) -> None:
    """Print rows as JSON lines."""
    from deltatune.data.write_rows import json_line

    utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    for row in rows:
        sys.stdout.write(f"{json_line(row, ascii_only=not utf8)}\n")
    sys.stdout.flush()


def batched(rows: Iterator[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    """Lists of `size` rows, the last one shorter."""
    while batch := list(itertools.islice(rows, size)):
        yield batch


def write(session: Session, rows: list[dict[str, Any]], put: Callable[[Iterable[Row]], None]) -> int:
    """Predict some rows and put them out; returns the number of truncated rows."""
    encoded = session.encode(shaped(session, rows), labelled=False)
    answers = session.predict(encoded, len(rows))
    weight = {} if session.weight == 1 else {"weight": session.weight}
    put([joined(row, answer, weight) for row, answer in zip(rows, session.task.decode(answers), strict=True)])
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
