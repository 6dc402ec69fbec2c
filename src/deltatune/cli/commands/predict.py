"""`deltatune predict`: use a trained adapter, or a prompt, on a stream of rows: texts, or a table."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltatune.cli.fill_rows import FILL, FILLED_WORDS, Filler, check_task
from deltatune.cli.input_rows import given_columns, rows_of_files
from deltatune.cli.options.data_options import Part, check_single
from deltatune.cli.options.prompt_options import (
    PROMPTS,
    SERVER_FIELDS,
    Cache,
    Concurrency,
    Describe,
    Key,
    Name,
    Omit,
    PromptMethodText,
    PromptSeed,
    Retries,
    SavePrompt,
    ServerForm,
    Template,
    Timeout,
    Url,
    Words,
)
from deltatune.cli.options.quantize_options import AdapterPrecision, AdapterQuantize
from deltatune.cli.options.shared_options import (
    DATA,
    OUTPUT,
    AdapterIfAny,
    InferenceFields,
    JsonLines,
    OtherBase,
    OtherModel,
    Weight,
    option,
    read_fields,
)
from deltatune.cli.prompt_session import PromptChoice, opened_prompt, server_options
from deltatune.cli.ui.error_screen import Interrupted, silence_stdout
from deltatune.cli.ui.output_file import checked_output, draft_of
from deltatune.cli.ui.output_mode import result_stream
from deltatune.cli.ui.screen import long_texts, print_json_line
from deltatune.comparison.report.number_format import count
from deltatune.core.errors import DeltatuneError

if TYPE_CHECKING:
    from deltatune.data.media.media_files import Inputs
    from deltatune.prompting.server_session import ServerSession
    from deltatune.training.session import Session

Row = dict[str, Any]


DIGITS = 6
"""Decimals of probabilities."""


def predict(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILE",
            help="Texts, one per line, or rows in a data format that evaluate reads; images or sounds, also several or "
            "their folder; - is stdin.",
        ),
    ] = None,
    *,
    adapter: AdapterIfAny = None,
    model: OtherModel = None,
    task: Annotated[
        str | None,
        option(
            "--task",
            panel=DATA,
            metavar="fill|generate",
            help="fill: the words at each {mask} of a text, by --model's own head; generate: texts behind a prompt.",
        ),
    ] = None,
    top: Annotated[
        int | None,
        option(
            "--top",
            panel=DATA,
            metavar="NUMBER",
            help=f"With --task fill: words of each mask. Default: {FILLED_WORDS}.",
            min=1,
        ),
    ] = None,
    label: Annotated[
        str | None,
        option(
            "--label", panel=DATA, metavar="COLUMN", help="With --task fill: the missing word; prints its rank and P@k."
        ),
    ] = None,
    other_base: OtherBase = False,
    quantize: AdapterQuantize = None,
    precision: AdapterPrecision = None,
    part: Part = None,
    fields: InferenceFields = None,
    weight: Weight = 1.0,
    batch_size: Annotated[
        int,
        option("--batch-size", panel=DATA, metavar="ROWS", help="Rows of a batch.", min=1),
    ] = 32,
    method: PromptMethodText = None,
    template: Template = None,
    words: Words = None,
    describe: Describe = None,
    data: Annotated[
        str | None,
        option(
            "--data",
            "-d",
            panel=PROMPTS,
            metavar="DATA",
            help="Labelled rows that a prompt is made of: its classes, and the rows that are shown.",
        ),
    ] = None,
    text: Annotated[
        list[str] | None,
        option("--text", panel=PROMPTS, metavar="COLUMN", help="The text column; give it again for a pair or more."),
    ] = None,
    max_length: Annotated[
        int | None,
        option("--max-length", panel=PROMPTS, metavar="TOKENS", help="Longest input of a prompt in tokens."),
    ] = None,
    seed: PromptSeed = 0,
    save: SavePrompt = None,
    url: Url = None,
    name: Name = None,
    key: Key = None,
    form: ServerForm = SERVER_FIELDS["form"].default,
    timeout: Timeout = SERVER_FIELDS["timeout"].default,
    retries: Retries = SERVER_FIELDS["retries"].default,
    concurrency: Concurrency = SERVER_FIELDS["concurrency"].default,
    omit: Omit = None,
    cache: Cache = None,
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
    as_json: JsonLines = False,
) -> None:
    """Use a trained adapter, or a prompt: reads texts, prints JSON lines in the same order, or writes a file.

    A line of input is one text; for an adapter that reads pairs, two texts with a tab between them. Rows of CSV or
    JSONL need the columns of the training; their other columns are copied. A line of output has the texts, `label`,
    `score` (its probability) and `scores` (of every label); for regression only `score`, the number; for tagging
    `tags`, for questions `answer` and its position, for generation `output`, of chains of thought also `answer`,
    `rationale` and `votes`, for language modelling `perplexity`. With --weight, `weight` is that number. An input
    column with one of these names becomes `given_label`, and so on.
    A prompt needs no adapter: --method or --template names one, --words or --data its classes, and --model or --url the
    model that reads it.

      echo "a lovely film" | deltatune predict --adapter runs/train-reviews-lora-r-8
      deltatune predict --adapter runs/train-reviews-lora-r-8 new.csv --out labelled.jsonl
      deltatune predict --adapter runs/train-pictures-lora-r-8 new/*.png
      deltatune predict --adapter runs/train-recipes-lora-r-8 --set temperature=0.8 --set top_p=0.9 dishes.txt
      deltatune predict --model gpt2 --template "{text} It was {mask}" --words bad=terrible --words good=great texts.txt
      deltatune predict --task fill --model bert-base-uncased sentences-with-masks.txt
    """
    files = files or ["-"]
    file = files[0]
    server = server_options(url, name, key, form, timeout, retries, concurrency, omit, cache)
    filling = task == FILL
    column = None if adapter or filling else label  # with --task fill it is the column of words
    choice = PromptChoice(
        method,
        template,
        words,
        describe,
        text,
        column,
        None if filling else task,
        max_length,
        seed,
        save,
        server,
        source=data,
        quantize=quantize,
    )
    refused = {f"--part {part}": part, "--other-base": other_base, f"--weight {weight:g}": weight != 1}
    refused |= {f"--precision {precision}": precision}
    prompted = not filling and choice.names_prompt(adapter, refused)
    if prompted:
        label = None
    check_task(
        task,
        {"--label": label, "--top": top}
        if not filling
        else {"--set": fields, "--part": part, "--precision": precision},
    )
    from deltatune.data.write_rows import check_suffix, row_writer
    from deltatune.training.open_session import open_adapter

    target, suffix = None, ""
    if out is not None:
        suffix = out.suffix.lower()
        check_suffix(suffix, f"--out {out}")
        target = checked_output(out, [name for name in (*files, adapter) if name is not None and name != "-"])
    answer: Callable[[list[Row], Callable[[Iterable[Row]], None]], int]
    filler, task_of_adapter, prompt = None, None, None
    reads: Inputs = "text"
    stack = ExitStack()
    if filling:
        filler = Filler(adapter, model, other_base, top or FILLED_WORDS, label, weight, quantize)
        answer, columns, every = filler.write, [filler.text], True
    else:
        session: Session | ServerSession
        if prompted:
            prompt = stack.enter_context(opened_prompt(choice, model, data, read_fields(fields)))
            session = prompt.session
        else:
            session = open_adapter(str(adapter), model, other_base, read_fields(fields), part, quantize)
            session = session.weighted(weight)
            session = session if precision is None else replace(session, precision=precision)
        check_single(session.task)
        answer, columns = partial(write, session), list(session.task.text)
        task_of_adapter, reads = session.task, session.task.inputs
        every = session.task.answers != "text"  # the input of an instruction may be empty
    if file == "-" and sys.stdin is not None and sys.stdin.isatty():
        print("Type texts, one per line; Ctrl-D ends.", file=sys.stderr)
        batch_size = 1
    done, truncated = 0, 0
    try:
        with stack:
            put: Callable[[Iterable[Row]], None] = print_rows
            if target is not None:
                put = stack.enter_context(row_writer(stack.enter_context(draft_of(target)), suffix))
            for rows in batched(rows_of_files(files, reads, columns, every), batch_size):
                try:
                    truncated += answer(rows, put)
                except DeltatuneError as error:
                    if filler or not re.match(r"(- )?row \d", str(error)):
                        raise
                    named = "the files" if files[1:] else "stdin" if file == "-" else file
                    raise DeltatuneError(_with_file_rows(str(error), named, done)) from None
                done += len(rows)
        if out and as_json:
            print_json_line({"out": str(out), "rows": done})
        elif out:
            print(f"{count(done)} rows: {out}", file=sys.stderr)
        if filler:
            filler.summarise()
        for what, line in [] if prompt is None else prompt.spent():
            print(f"{what}: {line}", file=sys.stderr)
        if truncated:
            print(long_texts(task_of_adapter, truncated), file=sys.stderr)
    except BrokenPipeError:
        silence_stdout()  # the reader has closed the pipe
    except KeyboardInterrupt:
        raise Interrupted(f"{count(done)} rows were {'labelled, none kept' if out else 'written'}") from None


def print_rows(rows: Iterable[Row]) -> None:
    """Print rows as JSON lines."""
    from deltatune.data.write_rows import json_line

    stream = result_stream()
    utf8 = (stream.encoding or "").lower().replace("-", "") == "utf8"
    for row in rows:
        stream.write(f"{json_line(row, ascii_only=not utf8)}\n")
    stream.flush()


def batched(rows: Iterator[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    """Lists of `size` rows, the last one shorter."""
    while batch := list(itertools.islice(rows, size)):
        yield batch


def write(session: Session | ServerSession, rows: list[dict[str, Any]], put: Callable[[Iterable[Row]], None]) -> int:
    """Predict some rows and put them out; returns the number of truncated rows."""
    from deltatune.tasks.row_inputs import row_inputs

    encoded = session.encode(row_inputs(session.task, rows), labelled=False)
    answers = session.predict(encoded, len(rows))
    weight = {} if session.weight == 1 else {"weight": session.weight}
    rows = [as_given(row) for row in rows]
    put([joined(row, answer, weight) for row, answer in zip(rows, session.task.decode(answers), strict=True)])
    return encoded.truncated


def as_given(row: dict[str, Any]) -> dict[str, Any]:
    """A row with its media files as they were named."""
    return {name: getattr(value, "given", value) for name, value in row.items()}


def rounded(value: Any) -> Any:
    """Plain data with its numbers rounded."""
    if isinstance(value, float):
        return round(value, DIGITS)
    return {name: rounded(one) for name, one in value.items()} if isinstance(value, dict) else value


def joined(row: dict[str, Any], answer: dict[str, Any], more: dict[str, Any] | None = None) -> dict[str, Any]:
    """A row with its answer and more; columns of the row with the same name are renamed."""
    if "value" in answer:
        answer = {"score": answer["value"]}
    elif "text" in answer:  # of a chain of thought also the answer, the steps and the votes
        answer = {"output": answer["text"], **{name: value for name, value in answer.items() if name != "text"}}
    else:
        answer = rounded(answer)
    answer = answer | (more or {})
    return given_columns(row, answer) | answer


def _with_file_rows(problems: str, named: str, before: int) -> str:
    """Problems of rows of a batch, counted from 0 there, as those of a file's rows, counted from 1."""
    return re.sub(r"(?m)^(- )?row (\d+)", lambda row: f"{row[1] or ''}{named} row {before + int(row[2]) + 1}", problems)
