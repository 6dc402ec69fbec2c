"""`deltatune evaluate`: score a trained adapter on labelled data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from deltatune.cli.options import (
    DATA,
    SOURCE,
    Adapter,
    InferenceFields,
    Json,
    OtherBase,
    OtherModel,
    option,
    read_fields,
)
from deltatune.cli.ui.screen import facts, print_json, scores_table, show
from deltatune.comparison.report.number_format import count
from deltatune.core.errors import DeltatuneError, nearest

if TYPE_CHECKING:
    from deltatune.data import LabelKind, Row
    from deltatune.tasks import Encoded
    from deltatune.training.session import Session

SPLITS = ("train", "validation", "test", "all")


def evaluate(
    adapter: Adapter,
    data: Annotated[str, option("--data", "-d", panel=DATA, metavar="DATA", help=SOURCE)],
    split: Annotated[
        str | None,
        option(
            "--split",
            panel=DATA,
            metavar="SPLIT",
            help="train, validation, test or all. Default: test; all for a single file that was not used for training.",
        ),
    ] = None,
    model: OtherModel = None,
    other_base: OtherBase = False,
    fields: InferenceFields = None,
    batch_size: Annotated[int, option("--batch-size", panel=DATA, metavar="ROWS", help="Rows of a batch.", min=1)] = 64,
    as_json: Json = False,
) -> None:
    """Score a trained adapter.

    Prints every metric of the task, the number of truncated texts, and how many of the rows the adapter was trained on.

      deltatune evaluate --adapter runs/train-reviews-lora-r-8 --data more-reviews.csv
    """
    if split is not None and split not in SPLITS:
        raise DeltatuneError(
            f"--split {split}: there is no such split{nearest(split, SPLITS)}; splits: {', '.join(SPLITS)}"
        )
    from deltatune.training.session import open_adapter

    session = open_adapter(adapter, model, other_base, read_fields(fields))
    rows, name, notes = rows_of(session, data, split)
    result = scored(session, rows, batch_size)
    result |= {"split": name, "data": data, "adapter": adapter, "model": session.model}
    if as_json:
        print_json(result)
        return
    show(scores_table(session.task, {name: result["scores"]}), "")
    truncated = result["truncated"]
    notes += overlap_notes(result["trained_on"], len(rows))
    if truncated:
        notes.append(f"{truncated} of {len(rows)} texts were truncated to the adapter's limit")
    show(facts([("rows", f"{count(len(rows))} from {data}"), *(("note", note) for note in notes)]))


def rows_of(session: Session, source: str, split: str | None) -> tuple[list[Row], str, list[str]]:
    """The rows to score, the name of their split, and notes for the user."""
    from deltatune.data import read

    task: Any = session.task
    kind, label = task.label_kind, task.label or None
    if split == "all" or (split is None and Path(source).is_file() and not _trained_on(session, source)):
        if Path(source).is_file():
            return whole_file(task, kind, source), "all", []
        data = read(source, text=task.text, label=label, kind=kind)
        return [row for rows in data.splits().values() for row in rows], "all", list(data.notes)
    data = read(source, text=task.text, label=label, kind=kind)
    name = split or "test"
    return data.splits()[name], name, list(data.notes)


def whole_file(task: Any, kind: LabelKind, source: str) -> list[Row]:
    """All rows of one file in the layout of the task; none is held out."""
    from deltatune.data import examples, read_rows
    from deltatune.data.layouts.label_values import convert_labels, join_indicators

    rows = join_indicators({source: read_rows(source)}, task.label or None)[source]
    if kind not in ("classes", "number"):
        return examples(rows, kind, task.text, task.label)
    labels = [row[task.label] for row in rows if row.get(task.label) is not None]
    if len(labels) == len(rows):  # else the task's own check names the rows without a label
        values = convert_labels(labels, task.label, kind)
        rows = [{**row, task.label: value} for row, value in zip(rows, values, strict=True)]
    return rows


def _trained_on(session: Session, source: str) -> bool:
    """Whether the adapter was trained on this file: then only its test rows are new to it."""
    trained = str((session.extra.get("data") or {}).get("source") or "")
    return bool(trained) and Path(trained).resolve() == Path(source).resolve()


def scored(session: Session, rows: list[Row], batch_size: int) -> dict[str, Any]:
    """Scores of the rows, their number, and the number of truncated rows."""
    encoded = session.encode(rows)
    answers = session.predict(encoded, batch_size)
    return {
        "metric": session.task.metric,
        "scores": session.task.score(answers, encoded.references),
        "rows": len(rows),
        "truncated": encoded.truncated,
        "trained_on": known_rows(session, encoded),
    }


def known_rows(session: Session, encoded: Encoded) -> dict[str, Any] | None:
    """How many of the rows the adapter was trained on, and selected by; None where its folder does not say."""
    from deltatune.core.trained_rows import overlap

    known = session.adapter.trained_rows
    if known is None or encoded.row_hashes is None:
        return None
    trained, selected = (overlap(encoded.row_hashes, rows) for rows in (known.train, known.validation))
    return {
        "rows": trained.rows,
        "same_label": trained.same_label,
        "other_label": trained.other_label,
        "validation_rows": selected.rows,
        "complete": known.complete,
    }


def overlap_notes(known: Mapping[str, Any] | None, total: int) -> list[str]:
    """What a user must know of rows that the adapter has seen."""
    if known is None:
        return ["whether the adapter was trained on these rows is unknown: its folder has no hashes of training rows"]
    notes = []
    if known["rows"]:
        labels = f"{count(known['same_label'])} with the same label, {count(known['other_label'])} with another one"
        notes.append(
            f"the adapter was trained on {count(known['rows'])} of these {count(total)} texts ({labels}): "
            "the scores are too good for new texts"
        )
    if known["validation_rows"]:
        notes.append(f"{count(known['validation_rows'])} of these texts were validation rows of its training")
    if not known["complete"]:
        notes.append("the adapter began as one whose training rows are unknown, so it may know more of these rows")
    return notes
