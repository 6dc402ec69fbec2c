"""Rows that `deltatune evaluate` scores: those of a split, their scores by group, and which of them are known."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltatune.cli.input_rows import whole_file
from deltatune.cli.ui.screen import console, metric_headers, table, width_of
from deltatune.comparison.report.number_format import clip, count, score
from deltatune.core.errors import DeltatuneError, nearest

if TYPE_CHECKING:
    from rich.table import Table

    from deltatune.comparison.statistics.group_scores import Groups
    from deltatune.data import Row
    from deltatune.prompting.server_session import ServerSession
    from deltatune.tasks import Encoded, Task
    from deltatune.training.session import Session

SPLITS = ("train", "validation", "test", "all")
GROUPS_SHOWN = 40
"""Groups of a column that are printed, the largest ones; --json has all of them."""
LONGEST_LABEL = 40
"""Characters of a group's name that are printed."""
PRIMARY_COLUMNS = 4
"""Columns of a table of groups that are always shown: name, rows, primary metric, interval."""


def rows_of(session: Session | ServerSession, source: str, split: str | None) -> tuple[dict[str, list[Row]], list[str]]:
    """The rows to score by split, and notes for the user. Raises DeltatuneError for a split that the data lack."""
    from deltatune.data.read_data import read_source

    task: Any = session.task
    kind, label = task.label_kind, task.label or None
    if Path(source).is_file() and (split == "all" or (split is None and not _trained_on(session, source))):
        rows, notes = whole_file(task, kind, source)
        return {"all": rows}, notes
    if split is not None and Path(source).is_file() and split not in SPLITS:
        raise _no_split(split, SPLITS)
    data = read_source(source, text=task.text, label=label, kind=kind)
    splits = data.splits()
    if split is None and not data.test:  # pictures: no test split is made of them
        split = "all"
    if split == "all":
        unique = {id(row): row for part in splits.values() for row in part}  # few pictures are in two splits at once
        return {"all": list(unique.values())}, list(data.notes)
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


def _trained_on(session: Session | ServerSession, source: str) -> bool:
    """Whether the adapter was trained on this file: then only its test rows are new to it."""
    data = session.extra.get("data") or {}
    trained = str(((data.get("parts") or {}).get(session.part) or data).get("source") or "")
    return bool(trained) and Path(trained).resolve() == Path(source).resolve()


def scored(
    session: Session | ServerSession, rows: list[Row], batch_size: int, groups: Sequence[tuple[str, Groups]] = ()
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
        from deltatune.comparison.statistics.group_scores import scores_by

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


def known_rows(session: Session | ServerSession, encoded: Encoded) -> dict[str, Any] | None:
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


def overlap_notes(known: Mapping[str, Any] | None, total: int, method: Any = None) -> list[str]:
    """What a user must know of rows that the adapter has seen: in training, or as those of its prompt."""
    if known is None:
        return ["whether the adapter was trained on these rows is unknown: its folder has no hashes of training rows"]
    notes = []
    seen = "adapter was trained on" if getattr(method, "trains", True) else "prompt is made of"
    if known["rows"]:
        labels = f"{count(known['same_label'])} with the same label, {count(known['other_label'])} with another one"
        notes.append(
            f"the {seen} {count(known['rows'])} of these {count(total)} texts ({labels}): "
            "the scores are too good for new texts"
        )
    if known["validation_rows"]:
        notes.append(f"{count(known['validation_rows'])} of these texts were validation rows of its training")
    if not known["complete"]:
        notes.append("the adapter began as one whose training rows are unknown, so it may know more of these rows")
    return notes
