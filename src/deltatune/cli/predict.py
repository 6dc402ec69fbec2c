"""`deltatune predict`: texts in, labels out, a line each."""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from deltatune.cli.adapters import NAME, Opened, open_adapter
from deltatune.cli.endings import Interrupted, silence_stdout
from deltatune.cli.lines import rows_from
from deltatune.cli.options import OUTPUT, Adapter, Answering, OtherBase, OtherModel, option
from deltatune.comparison.formats import count

DIGITS = 6
"""Decimals of probabilities."""


def predict(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="Texts, one a line, or a CSV, TSV, JSONL or Parquet file; - is stdin.")
    ] = "-",
    *,
    adapter: Adapter,
    model: OtherModel = None,
    other_base: OtherBase = False,
    fields: Answering = None,
    batch_size: Annotated[
        int,
        option("--batch-size", panel=OUTPUT, metavar="ROWS", help="Rows that run, and are written, at once.", min=1),
    ] = 32,
    out: Annotated[
        Path | None,
        option("--out", "-o", panel=OUTPUT, metavar="FILE", help="Write there, once all is done, not to stdout."),
    ] = None,
) -> None:
    """Use a trained adapter: texts in, JSON lines out, in the same order.

    A line of input is one text; for an adapter that reads pairs, two with a tab between them. Rows of CSV or JSONL must
    have the columns it was trained on; their other columns are passed on. A line of output has the texts, `label`,
    `score` (its probability) and `scores` (of every label); of a regression only `score`, the number itself; of tagging
    `tags`, of questions `answer` and where it stands, of generation `output`, of language modelling `perplexity`. An
    input column that has one of these names comes out as `given_label`, and so on.

      echo "a lovely film" | deltatune predict --adapter runs/train-reviews-lora-r-8
      deltatune predict --adapter runs/train-reviews-lora-r-8 new.csv --out labelled.jsonl
      deltatune predict --adapter runs/train-recipes-lora-r-8 --set temperature=0.8 --set top_p=0.9 dishes.txt
    """
    opened = open_adapter(adapter, model, other_base, fields)
    if file == "-" and sys.stdin.isatty():
        print("Type texts, one a line; Ctrl-D ends.", file=sys.stderr)
        batch_size = 1
    columns = list(opened.task.text)  # type: ignore[attr-defined]
    done, cut = 0, 0
    draft = out.with_name(f".{out.name}.{os.getpid()}") if out else None
    try:
        with ExitStack() as stack:
            target: TextIO = stack.enter_context(draft.open("w", encoding="utf-8")) if draft else sys.stdout
            every = opened.task.answers != "text"  # an instruction may come without an input
            for rows in batched(rows_from(file, columns, every), batch_size):
                cut += write(opened, rows, target)
                done += len(rows)
        if draft and out:
            draft.replace(out)
            print(f"{count(done)} rows: {out}", file=sys.stderr)
        if cut:
            print(f"{count(cut)} texts were cut because they are longer than the adapter's limit", file=sys.stderr)
    except BrokenPipeError:
        silence_stdout()  # the reader has enough
    except KeyboardInterrupt:
        raise Interrupted(f"{count(done)} rows were {'labelled, none kept' if out else 'written'}") from None
    finally:
        if draft:
            draft.unlink(missing_ok=True)


def batched(rows: Iterator[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    """Lists of `size` rows, the last one shorter."""
    while batch := list(itertools.islice(rows, size)):
        yield batch


def write(opened: Opened, rows: list[dict[str, Any]], target: TextIO) -> int:
    """Label some rows and write them; returns how many were longer than the adapter's limit and cut."""
    from deltatune.training import encode_for
    from deltatune.training import predict as answers_of

    precision = str((opened.extra.get("settings") or {}).get("precision") or "auto")
    encoded = encode_for(opened.host, NAME, opened.task, shaped(opened, rows), opened.tokenizer, labelled=False)
    answers = answers_of(opened.host, NAME, opened.task, encoded, opened.tokenizer, len(rows), precision)
    utf8 = (target.encoding or "").lower().replace("-", "") == "utf8"
    for row, answer in zip(rows, opened.task.decode(answers), strict=True):
        target.write(json.dumps(joined(row, answer), ensure_ascii=not utf8) + "\n")
    target.flush()
    return encoded.truncated


def shaped(opened: Opened, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows in the shape that the task reads: words in lists, tables in one line."""
    from deltatune.data import inputs
    from deltatune.data.kinds import TASK_OF
    from deltatune.tasks.choosing import kind_of

    task: Any = opened.task
    if task.answers == "text" and len(task.text) > 1:
        rows = [{**dict.fromkeys(task.text, ""), **row} for row in rows]
    return inputs(rows, TASK_OF[kind_of(task)], task.text)


def rounded(value: Any) -> Any:
    """Plain data with its numbers rounded."""
    if isinstance(value, float):
        return round(value, DIGITS)
    return {name: rounded(one) for name, one in value.items()} if isinstance(value, dict) else value


def joined(row: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    """A row with its answer; its own columns give way."""
    if "value" in answer:
        answer = {"score": answer["value"]}
    elif "text" in answer:
        answer = {"output": answer["text"]}
    else:
        answer = rounded(answer)
    return {f"given_{name}" if name in answer else name: value for name, value in row.items()} | answer
