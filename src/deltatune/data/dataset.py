"""A source and the columns' names -> `Data`: rows in three splits, checked, with every guess noted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.data.checks import problems
from deltatune.data.columns.infer_columns import columns_for, renamed
from deltatune.data.columns.infer_task import guess_task, options
from deltatune.data.columns.label_columns import choose
from deltatune.data.formats.files import Row, read_rows
from deltatune.data.layouts.classification_rows import flag_columns, gathered_where_asked, labelled, option
from deltatune.data.layouts.convert import absent_columns, hashed, shape, tags_of, without_unlabelled_test
from deltatune.data.layouts.generation_rows import grouped
from deltatune.data.sources import Source, open_source
from deltatune.data.splits import Data, complete, complete_documents, first_by_hash
from deltatune.data.task_types import TASK_OF, TASKS, Kind, Task

__all__ = ["Data", "Row", "look", "read", "read_rows"]

Found = tuple[Data, list[str]]


def read(
    source: str | Path,
    *,
    text: Sequence[str] = (),
    label: str | None = None,
    kind: Kind | None = None,
    task: Task | None = None,
    validation: str | Path | None = None,
    test: str | Path | None = None,
    limit: int | None = None,
) -> Data:
    """Read data, make the splits that are missing, and check everything before anything is trained.

    `source` is a file (CSV, TSV, JSONL, JSON, Parquet, CoNLL, SQuAD's JSON, plain text); a folder with files named
    train, dev (val, valid, validation) and test, or of plain texts; the name of a data set on the hub (`owner/name` or
    `owner/name:configuration`); or "python-docs", the built-in data. `task` is classify, regression, tag, span,
    generate or lm; `text` names the text columns, `label` the label column, or with commas between them the columns of
    several classes a row, which hold 1 or 0. What is not named is guessed where there is no doubt. `kind` says
    "classes", "many" or "number" where the guess for labels would be wrong.
    `validation` and `test` are further files. `limit` keeps that many training rows, the first by hash of their text.
    Text and label columns of the returned rows have the shape that `Data.kind` says; others are as they were read.

    Raises DeltatuneError with everything that is wrong, once.
    """
    data, wrong = look(
        source, text=text, label=label, kind=kind, task=task, validation=validation, test=test, limit=limit
    )
    kept = "" if limit is None else f" with --limit {limit}"
    raise_all(wrong, f"{data.origin}{kept} cannot be used as it is:")
    return data


def look(
    source: str | Path,
    *,
    text: Sequence[str] = (),
    label: str | None = None,
    kind: Kind | None = None,
    task: Task | None = None,
    validation: str | Path | None = None,
    test: str | Path | None = None,
    limit: int | None = None,
) -> Found:
    """What `read` reads without the rows that cannot be used, and everything that is wrong, one sentence each.

    Raises DeltatuneError where nothing can be read: no such file, or columns that are not clear.
    """
    if limit is not None and limit < 1:
        raise DeltatuneError(f"--limit {limit}: the number of training rows to keep must be at least 1.")
    task = _task(task, kind)
    found = open_source(source, validation=validation, test=test)
    text = (text,) if isinstance(text, str) else tuple(text)
    told = text or found.text, label or found.label
    if flag_columns(found.parts["train"], label):
        parts = {split: gathered_where_asked(rows, label, split) for split, rows in found.parts.items()}
        found = replace(found, parts=parts)
        kind, task = kind or "many", task or "classify"
    note = ""
    if task is None and found.label is None:
        task, note = guess_task(found.parts["train"], *told)
    if task is None or task in ("classify", "regression"):
        forced = kind or ("number" if task == "regression" else None)
        return _labelled(found, *told, forced, task, test is not None, limit)
    return _shaped(found, *told, task, test is not None, limit, [note] if note else [])


def _task(task: Task | None, kind: Kind | None) -> Task | None:
    """The task, also where only the kind is given. Raises DeltatuneError for names there are not and for a mismatch."""
    if task is not None and task not in TASKS:
        raise DeltatuneError(f"--task {task}: there is no such task{nearest(task, TASKS)}; tasks: {', '.join(TASKS)}.")
    if kind is not None and kind not in TASK_OF:
        raise DeltatuneError(
            f"kind={kind!r}: there is no such kind{nearest(kind, TASK_OF)}; kinds: {', '.join(TASK_OF)}."
        )
    if kind is not None and task is not None and TASK_OF[kind] != task:
        raise DeltatuneError(f"kind={kind!r} is for the task {TASK_OF[kind]}, not for {task}: leave one of them out.")
    return TASK_OF[kind] if kind is not None else task


def _labelled(
    found: Source,
    text: Sequence[str],
    label: str | None,
    kind: Kind | None,
    task: Task | None,
    own_test: bool,
    limit: int | None,
) -> Found:
    """Classes and numbers."""
    try:
        columns = choose(found.parts["train"], text, label, found.header)
    except DeltatuneError as error:
        rows = found.parts["train"]
        more = [option(rows, text) if label is None else "", options(rows) if task is None and label is None else ""]
        raise DeltatuneError("\n".join(filter(None, [str(error), *more]))) from None
    parts, unlabelled = (found.parts, []) if own_test else without_unlabelled_test(found.parts, columns.label)
    raise_all(absent_columns(parts, (*columns.text, columns.label)), f"{found.origin}:")
    read_labels = labelled(parts, columns, kind, task)
    parts, made = complete(read_labels.parts, columns.text)
    if limit is not None:
        parts["train"] = first_by_hash(parts["train"], columns.text, columns.label, limit)
    notes = (*columns.notes, *unlabelled, *read_labels.notes, *made)
    names = read_labels.names(parts["train"], columns.label)
    chosen = read_labels.kind
    data = Data(found.name, found.origin, columns.text, columns.label, chosen, names, **parts, notes=notes)
    further = [] if read_labels.unusable else problems(data)
    return data, read_labels.problems + read_labels.unusable + further


def _shaped(
    found: Source,
    text: Sequence[str],
    label: str | None,
    task: Task,
    own_test: bool,
    limit: int | None,
    notes: list[str],
) -> Found:
    """Tags, answers in a context, texts to be written, plain text."""
    columns = columns_for(task, found.parts["train"], text, label, found.header)
    parts, more = (found.parts, []) if own_test or task == "lm" else without_unlabelled_test(found.parts, columns.label)
    notes += [*columns.notes, *more]
    if task != "generate":
        raise_all(absent_columns(parts, [*columns.text, *filter(None, [columns.label])]), f"{found.origin}:")
    shaped = shape(task, parts, columns)
    columns = renamed(columns, task)
    by = hashed(task, columns.text)
    parts, made = complete_documents(shaped.parts, *by) if task == "lm" else complete(shaped.parts, by)
    if task == "generate":
        parts, again = grouped(parts, columns)
        made += again
    if limit is not None:
        parts["train"] = first_by_hash(parts["train"], columns.text, columns.label, limit)
    kind = next(kind for kind, of in reversed(TASK_OF.items()) if of == task)
    labels = tags_of(parts, columns.label) if kind == "tags" else ()
    notes = [*notes, *shaped.notes, *made]
    data = Data(found.name, found.origin, columns.text, columns.label, kind, labels, **parts, notes=tuple(notes))
    return data, shaped.problems + problems(data)
