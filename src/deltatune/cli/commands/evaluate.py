"""`deltatune evaluate`: score a trained adapter on labelled data."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from deltatune.cli.data_options import Part, one_source, sources_of_parts
from deltatune.cli.input_rows import whole_file
from deltatune.cli.options import (
    DATA,
    SOURCE,
    Adapter,
    InferenceFields,
    Json,
    OtherBase,
    OtherModel,
    Weight,
    option,
    read_fields,
    set_values,
)
from deltatune.cli.task_options import MetricModel, Positive
from deltatune.cli.ui.screen import (
    console,
    facts,
    long_texts,
    metric_headers,
    print_json,
    scores_table,
    show,
    table,
    width_of,
)
from deltatune.comparison.report.number_format import clip, count, score
from deltatune.core.errors import DeltatuneError, nearest

if TYPE_CHECKING:
    from rich.table import Table

    from deltatune.comparison.group_scores import Groups
    from deltatune.data import Row
    from deltatune.tasks import Encoded, Task
    from deltatune.training.session import Session

SPLITS = ("train", "validation", "test", "all")
GROUPS_SHOWN = 40
"""Groups of a column that are printed, the largest ones; --json has all of them."""
LONGEST_LABEL = 40
"""Characters of a group's name that are printed."""
PRIMARY_COLUMNS = 4
"""Columns of a table of groups that are always shown: name, rows, primary metric, interval."""


def evaluate(
    adapter: Adapter,
    data: Annotated[
        list[str],
        option(
            "--data",
            "-d",
            panel=DATA,
            metavar="DATA",
            help=f"{SOURCE} For a mixture NAME=DATA for each part, or one with --part.",
        ),
    ],
    part: Part = None,
    split: Annotated[
        str | None,
        option(
            "--split",
            panel=DATA,
            metavar="SPLIT",
            help="train, validation, test, all, or another split of the data such as test_mismatched. Default: every "
            "test split; all for a single file that was not used for training.",
        ),
    ] = None,
    by: Annotated[
        list[str] | None,
        option(
            "--by",
            panel=DATA,
            metavar="COLUMN",
            help="Score the rows of each value of this column on their own, too; give it again for another column.",
        ),
    ] = None,
    metric: Annotated[
        str | None, option("--metric", panel=DATA, metavar="NAME", help="Another primary metric than at training.")
    ] = None,
    positive: Positive = None,
    metric_model: MetricModel = None,
    model: OtherModel = None,
    other_base: OtherBase = False,
    fields: InferenceFields = None,
    weight: Weight = 1.0,
    batch_size: Annotated[int, option("--batch-size", panel=DATA, metavar="ROWS", help="Rows of a batch.", min=1)] = 64,
    as_json: Json = False,
) -> None:
    """Score a trained adapter.

    Prints every metric of the task, the number of truncated texts, and how many of the rows the adapter was trained on.

      deltatune evaluate --adapter runs/train-reviews-lora-r-8 --data more-reviews.csv
      deltatune evaluate --adapter runs/train-webnlg-lora-r-8 --data webnlg --by category
    """
    from deltatune.comparison.group_scores import group_rows
    from deltatune.training.session import open_adapter

    chosen = set_values({"metric": metric, "positive": positive, "metric_model": metric_model})
    session = open_adapter(adapter, model, other_base, {**read_fields(fields), **chosen}, part).weighted(weight)
    if part is None and session.task.label_kind == "mixture":
        evaluate_parts(session, data, split, by, batch_size, as_json, {"adapter": adapter, "weight": weight})
        return
    source = one_source(data, part)
    splits, notes = rows_of(session, source, split)
    groups = {name: [(column, group_rows(rows, column)) for column in by or ()] for name, rows in splits.items()}
    results = {name: scored(session, rows, batch_size, groups[name]) for name, rows in splits.items()}
    first, *others = results
    if as_json:
        result = results[first] | {"split": first, "data": source, "adapter": adapter, "model": session.model}
        result["weight"] = weight
        print_json(result | ({"more_splits": {name: results[name] for name in others}} if others else {}))
        return
    left_out: list[str] = []
    if by:
        show(*(part for name in results for part in (groups_table(session.task, name, results[name], left_out), "")))
    else:
        show(scores_table(session.task, {name: result["scores"] for name, result in results.items()}), "")
    for name, result in results.items():
        total, of = len(splits[name]), f"{name}: " if others else ""
        notes += [of + note for note in overlap_notes(result["trained_on"], total)]
        notes += [of + note for note in result.get("notes", ())]
        if result["truncated"]:
            notes.append(of + long_texts(session.task, result["truncated"], total))
        notes += [
            f"{of}the {GROUPS_SHOWN} largest of {len(groups)} groups by {column} are shown; --json has all"
            for column, groups in result.get("by", {}).items()
            if len(groups) > GROUPS_SHOWN
        ]
        notes += [
            f"{of}{score(whole['share'])} of the {count(whole['groups'])} groups by {column} have no wrong row"
            for column, whole in result.get("whole_groups", {}).items()
        ]
    if weight != 1:
        notes.append(weight_note(weight))
    if left_out:
        notes.append(f"no room on this screen for {', '.join(dict.fromkeys(left_out))}; --json has them")
    counts = ", ".join(f"{count(len(rows))}{f' {name}' if others else ''}" for name, rows in splits.items())
    show(facts([("rows", f"{counts} from {source}"), *(("note", note) for note in notes)]))


def evaluate_parts(
    session: Session,
    data: Sequence[str],
    split: str | None,
    by: Sequence[str] | None,
    batch_size: int,
    as_json: bool,
    facts_of_run: Mapping[str, Any],
) -> None:
    """Score the parts of a mixture, each on its own data, and their mean."""
    mixture: Any = session.task
    sources = sources_of_parts(mixture, data)
    if by:
        raise DeltatuneError(f"--by {by[0]} is for one part of a mixture: name it with --part")
    results: dict[str, dict[str, Any]] = {}
    notes: list[str] = []
    for name, source in sources.items():
        own = session.for_part(name)
        splits, of_data = rows_of(own, source, split)
        for each, rows in splits.items():
            results.setdefault(each, {})[name] = result = scored(own, rows, batch_size)
            of = f"{name}, {each}: " if len(splits) > 1 else f"{name}: "
            notes += [of + note for note in overlap_notes(result["trained_on"], len(rows))]
            if result["truncated"]:
                notes.append(f"{of}{long_texts(own.task, result['truncated'], len(rows))}")
        notes += [f"{name}: {note}" for note in of_data]
    means = {
        each: mixture.mean_of({name: result["scores"] for name, result in parts.items()})
        for each, parts in results.items()
    }
    missing = [name for name in mixture.parts if name not in sources]
    if missing:
        notes.append(f"the mean is over {', '.join(sources)}: no data were named for {', '.join(missing)}")
    notes += [
        f"the mean of {each} is over {', '.join(parts)}: the other parts have no such split"
        for each, parts in results.items()
        if len(parts) < len(sources)
    ]
    if (weight := facts_of_run["weight"]) != 1:
        notes.append(weight_note(weight))
    first, *others = means
    if as_json:
        result = {"metric": mixture.metric, "scores": means[first], "parts": results[first], "split": first}
        more = {"more_splits": {each: {"scores": means[each], "parts": results[each]} for each in others}}
        print_json({**result, "data": sources, "model": session.model, **facts_of_run, **(more if others else {})})
        return
    show(*(part for each in means for part in (scores_table(mixture, {each: means[each]}), "")))
    counts = {
        each: ", ".join(f"{count(result['rows'])} from {sources[name]}" for name, result in parts.items())
        for each, parts in results.items()
    }
    rows_scored = counts[first] if not others else "; ".join(f"{each}: {of}" for each, of in counts.items())
    show(facts([("rows", rows_scored), *(("note", note) for note in notes)]))


def weight_note(weight: float) -> str:
    """What --weight did to the scores."""
    return f"the adapter's change was multiplied by {weight:g}; its head was used whole"


def rows_of(session: Session, source: str, split: str | None) -> tuple[dict[str, list[Row]], list[str]]:
    """The rows to score by split, and notes for the user. Raises DeltatuneError for a split that the data lack."""
    from deltatune.data import read

    task: Any = session.task
    kind, label = task.label_kind, task.label or None
    if Path(source).is_file() and (split == "all" or (split is None and not _trained_on(session, source))):
        rows, notes = whole_file(task, kind, source)
        return {"all": rows}, notes
    if split is not None and Path(source).is_file() and split not in SPLITS:
        raise _no_split(split, SPLITS)
    data = read(source, text=task.text, label=label, kind=kind)
    splits = data.splits()
    if split == "all":
        return {"all": [row for rows in splits.values() for row in rows]}, list(data.notes)
    if split is None:
        return {"test": data.test, **data.more_tests}, list(data.notes)
    if split not in splits:
        raise _no_split(split, [*splits, "all"])
    return {split: splits[split]}, list(data.notes)


def _no_split(split: str, splits: Sequence[str]) -> DeltatuneError:
    return DeltatuneError(
        f"--split {split}: there is no such split{nearest(split, splits)}; splits: {', '.join(splits)}"
    )


def groups_table(task: Task, name: str, result: Mapping[str, Any], left_out: list[str]) -> Table:
    """Scores of all rows of a split, then of each group, with their numbers of rows and 95 % intervals.

    The metrics that a narrow screen has no room for are added to `left_out`.
    """
    parts = [(name, result)]
    for column, groups in result["by"].items():
        largest = set(sorted(groups, key=lambda value: -groups[value]["rows"])[:GROUPS_SHOWN])
        parts += [(f"{column}: {value}", group) for value, group in groups.items() if value in largest]
    names = list(dict.fromkeys(metric for _, part in parts for metric in part["scores"]))
    rows = []
    for label, part in parts:
        cells = [score(part["scores"].get(metric)) for metric in names]
        interval = part["interval"]
        half = f"±{(interval[1] - interval[0]) / 2:.3f}" if interval else ""
        rows.append([clip(label, LONGEST_LABEL), count(part["rows"]), cells[0], half, *cells[1:]])
    headers = metric_headers(task, names)
    columns = ["", "rows", headers[0], "95 %", *headers[1:]]
    shown = len(columns)
    while shown > PRIMARY_COLUMNS and width_of(columns[:shown], [row[:shown] for row in rows]) > console().width:
        shown -= 1  # the last metrics are left to --json where the screen is narrow
    if shown < len(columns):
        left_out.extend(columns[shown:])
    return table(columns[:shown], [row[:shown] for row in rows], right=columns[1:shown])


def _trained_on(session: Session, source: str) -> bool:
    """Whether the adapter was trained on this file: then only its test rows are new to it."""
    data = session.extra.get("data") or {}
    trained = str(((data.get("parts") or {}).get(session.part) or data).get("source") or "")
    return bool(trained) and Path(trained).resolve() == Path(source).resolve()


def scored(
    session: Session, rows: list[Row], batch_size: int, groups: Sequence[tuple[str, Groups]] = ()
) -> dict[str, Any]:
    """Scores of the rows and of their groups, their number, and the number of truncated rows."""
    try:
        encoded = session.encode(rows)
    except DeltatuneError as error:
        counted = "\nrows are counted from 0 here" if re.match(r"(- )?row \d", str(error)) else ""
        raise DeltatuneError(f"{error}{counted}") from None
    answers = session.predict(encoded, batch_size)
    by: dict[str, Any] = {}
    if groups:
        from deltatune.comparison.group_scores import scores_by

        by = scores_by(session.task, answers, encoded.references, groups)
    positive = session.task.to_json().get("positive")
    return {
        "metric": session.task.metric,
        **({"positive": positive} if positive else {}),
        "scores": session.task.score(answers, encoded.references),
        **by,
        "rows": len(rows),
        "truncated": encoded.truncated,
        **({"notes": list(encoded.notes)} if encoded.notes else {}),
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
