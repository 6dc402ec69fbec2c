"""`read`: a source and the names of its columns -> `Data`, checked rows in their splits with a note on every inference.

source -> splits -> task -> columns -> splits that can be scored -> converted rows -> missing splits -> checks
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.core.input_validation.option_words import rewording
from deltatune.data.captions import read_captions
from deltatune.data.checks import split_problems
from deltatune.data.columns.choose_columns import Columns, choose_columns
from deltatune.data.columns.column_names import PREFERENCES, REFERENCES, is_id, normalised
from deltatune.data.columns.column_rules import media_columns
from deltatune.data.columns.infer_task import infer_task, other_tasks
from deltatune.data.dataset import SPLITS, TASK_OF, TASKS, Data, LabelKind, Row, Splits, TaskName, columns_of
from deltatune.data.formats.file_format import first_few
from deltatune.data.layouts import LAYOUTS
from deltatune.data.layouts.label_values import indicator_columns, indicator_hint, join_indicators
from deltatune.data.media.media_files import kind_of
from deltatune.data.published.benchmarks import published_metric
from deltatune.data.published.forms import find_form, plain_splits
from deltatune.data.sources.labelled_splits import labelled_splits
from deltatune.data.sources.open_source import open_source
from deltatune.data.sources.source import Source
from deltatune.data.splits import first_by_hash

OF_PYTHON = {**{name: name for name in ("text", "label", "task", "limit")}, "data": "source"}
"""Arguments of `read` by the options of the command line."""


@rewording(OF_PYTHON)
def read(
    source: str | Path,
    *,
    text: Sequence[str] = (),
    label: str | None = None,
    kind: LabelKind | None = None,
    task: TaskName | None = None,
    validation: str | Path | None = None,
    test: str | Path | None = None,
    limit: int | None = None,
    strict: bool = True,
) -> Data:
    """Read data, make the splits that are missing, and check everything before anything is trained.

    - `source`: a file (.csv, .tsv, .jsonl, .ndjson, .json (also SQuAD's), .parquet, .arrow, .conll, .bio, .iob, .iob2,
      .conllu, .txt or WebNLG's .xml); a folder with files named train, dev (val, valid, validation) and test, or of
      plain texts, or with a folder for each class, of texts, images or sounds; a data set of the hub (`owner/name` or
      `owner/name:configuration`); or "python-docs", the built-in data.
    - `text`: the text columns.
    - `label`: the label column; or the columns of several classes, which hold 1 or 0, with commas between them.
    - `kind`: the type of the labels, where the inferred one is wrong: "classes", "many" or "number".
    - `task`: classify, regression, tag, span, generate, lm, prefer or image (pictures with captions).
    - `validation`, `test`: further files for these splits.
    - `limit`: the number of training rows to keep, the first by hash of their text.
    - `strict`: False returns the rows that can be used, and lists in `Data.problems` what is wrong with the others.

    What is not given is inferred where there is no doubt; `Data.notes` has every inference. Text and label columns of
    the returned rows have the form that `Data.kind` names; other columns are unchanged.

    Raises DeltatuneError listing everything that is wrong. With `strict=False` it does so only where nothing can be
    read: no such file, columns that are not clear.
    """
    return read_source(
        source,
        text=text,
        label=label,
        kind=kind,
        task=task,
        validation=validation,
        test=test,
        limit=limit,
        strict=strict,
    )


def read_source(
    source: str | Path,
    *,
    text: Sequence[str] = (),
    label: str | None = None,
    kind: LabelKind | None = None,
    task: TaskName | None = None,
    validation: str | Path | None = None,
    test: str | Path | None = None,
    limit: int | None = None,
    strict: bool = True,
) -> Data:
    """`read` for doors with words of their own: its errors name what the user gave as options of the command line."""
    if limit is not None and limit < 1:
        raise DeltatuneError(f"--limit {limit}: the number of training rows to keep must be at least 1.")
    task = _checked_task(task, kind)
    if task == "image":
        return read_captions(source, text, validation, test, limit)
    opened = open_source(source, validation=validation, test=test)
    text = (text,) if isinstance(text, str) else tuple(text)
    opened, task, text, label = _in_published_form(opened, task, text, label)
    train = opened.splits["train"]
    if indicator_columns(train, label):
        opened = replace(opened, splits=join_indicators(opened.splits, label))
        train = opened.splits["train"]
        kind, task = kind or "many", task or "classify"
    text, label = text or opened.text, label or opened.label
    note = ""
    if task is None and opened.label is None:
        task, note = infer_task(train, text, label)
    columns = _columns(opened, task, text, label)
    fixed = [split for split, path in (("validation", validation), ("test", test)) if path is not None]
    data = _converted(opened, task, _allowed_kinds(task, kind), columns, fixed, limit)
    data = replace(data, notes=(*opened.notes, *filter(None, [note]), *data.notes))
    if strict:
        limited = "" if limit is None else f" with --limit {limit}"
        raise_all(list(data.problems), f"{data.origin}{limited} cannot be used as it is:")
    return data


def _in_published_form(
    opened: Source, task: TaskName | None, text: tuple[str, ...], label: str | None
) -> tuple[Source, TaskName | None, tuple[str, ...], str | None]:
    """A source in a published form with plain columns, and its task and columns where the user named no others."""
    form = find_form(opened.splits["train"])
    if form is None:
        return opened, task, text, label
    agrees = task in (None, form.task) and label in (None, form.label) and text in ((), form.text)
    if not agrees and form.convert is None:
        return opened, task, text, label
    splits, notes = plain_splits(form, opened.splits)
    opened = replace(opened, splits=splits, metric=form.metric if agrees else "", notes=(*opened.notes, *notes))
    return (opened, form.task, form.text, form.label) if agrees else (opened, task, text, label)


def _checked_task(task: TaskName | None, kind: LabelKind | None) -> TaskName | None:
    """The task, also where only the kind is given. Raises DeltatuneError for unknown names and for a mismatch."""
    if task is not None and task not in TASKS:
        raise DeltatuneError(f"--task {task}: there is no such task{nearest(task, TASKS)}; tasks: {', '.join(TASKS)}.")
    if kind is not None and kind not in TASK_OF:
        raise DeltatuneError(
            f"kind={kind!r}: there is no such kind{nearest(kind, TASK_OF)}; kinds: {', '.join(TASK_OF)}."
        )
    if kind is not None and task is not None and TASK_OF[kind] != task:
        raise DeltatuneError(f"kind={kind!r} is for the task {TASK_OF[kind]}, not for {task}: leave one of them out.")
    return TASK_OF[kind] if kind is not None else task


def _allowed_kinds(task: TaskName | None, kind: LabelKind | None) -> tuple[LabelKind, ...]:
    """The kinds of label that the data may turn out to have."""
    if kind is not None:
        return (kind,)
    if task is None:
        return "classes", "many", "number"
    return tuple(kind for kind, kind_task in TASK_OF.items() if kind_task == task)


def _columns(opened: Source, task: TaskName | None, text: Sequence[str], label: str | None) -> Columns:
    """The columns of the task; without one those of classification, whose error offers the other tasks too."""
    rows = opened.splits["train"]
    try:
        columns = choose_columns(task or "classify", rows, text, label, opened.header)
        _check_media(rows, task or "classify", columns.text)
        return columns
    except DeltatuneError as error:
        if label is not None or task not in (None, "classify", "regression"):
            raise
        hints = [indicator_hint(rows, text), other_tasks(rows) if task is None else ""]
        raise DeltatuneError("\n".join(filter(None, [str(error), *hints]))) from None


def _check_media(rows: Sequence[Row], task: TaskName, text: Sequence[str]) -> None:
    """Raise DeltatuneError for images or sounds beside another input, and for a task that has text alone."""
    media = media_columns(rows, text)
    if media and len(text) > 1:
        raise DeltatuneError(
            f"the inputs {' and '.join(map(repr, text))}: a row has one image or one sound, without a text or a second "
            f"one beside it; name the column that the model reads: --text {media[0]}"
        )
    if media and task not in ("classify", "regression"):
        kind = kind_of(row.get(media[0]) for row in rows)
        raise DeltatuneError(
            f"--task {task}: column {media[0]!r} holds {kind} files, which are classified or get a number (--task "
            "classify, --task regression); other tasks read text"
        )


def _converted(
    opened: Source,
    task: TaskName | None,
    kinds: Sequence[LabelKind],
    columns: Columns,
    fixed: Sequence[str],
    limit: int | None,
) -> Data:
    """The rows in the form of their task and in their splits, with all problems and notes."""
    layout = LAYOUTS[task or "classify"]
    splits, dropped = labelled_splits(
        opened.splits, columns.text, columns.label, opened.class_names, opened.split_names, fixed
    )
    notes = [*columns.notes, *_unread_columns(opened, columns), *dropped]
    if layout.same_columns:
        raise_all(_absent_columns(splits, [*columns.text, *filter(None, [columns.label])]), f"{opened.origin}:")
    converted = layout.convert(splits, columns, kinds)
    columns, kind = converted.columns, converted.kind
    completed, made = layout.complete(converted.splits, columns)
    splits = {**converted.splits, **completed}
    if limit is not None:
        splits["train"] = first_by_hash(splits["train"], columns.text, columns.label, limit)
    labels = layout.label_names(splits, kind, columns.label)
    notes += [*converted.notes, *made]
    data = Data(
        name=opened.name,
        origin=opened.origin,
        text=columns.text,
        label=columns.label,
        kind=kind,
        labels=labels,
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        more_tests={name: rows for name, rows in splits.items() if name not in SPLITS},
        metric=opened.metric or published_metric(opened.name, kind, len(columns.text)),
        notes=tuple(notes),
    )
    problems = converted.problems + (split_problems(data) if converted.checkable else [])
    return replace(data, problems=tuple(problems))


def _unread_columns(opened: Source, columns: Columns) -> list[str]:
    """A note on the columns that were not chosen, where columns were; apart from numbers of rows."""
    chosen = {*columns.text, columns.label, REFERENCES}
    chosen |= {rejected for answer, rejected in PREFERENCES if answer == normalised(columns.label)}
    others = [name for name in columns_of(opened.splits["train"]) if name not in chosen and not is_id(name)]
    return [f"neither text nor label: {first_few(others, 12)}"] if others and columns.notes else []


def _absent_columns(splits: Splits, columns: Sequence[str]) -> list[str]:
    """Columns that the training rows have and another split lacks altogether."""
    return [
        f"{split} has no column {column!r}, train has. The columns of {split} are: {', '.join(names)}."
        for split, names in ((split, columns_of(rows)) for split, rows in splits.items())
        for column in columns
        if column not in names
    ]
