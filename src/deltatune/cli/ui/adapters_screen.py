"""Screens of several adapters that are trained together: what is about to run, and their scores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltatune.cli.ui.screen import base_text, facts, plural, say, show, table, truncation_notes
from deltatune.comparison.report.number_format import count, rate, seconds

if TYPE_CHECKING:
    from deltatune.training.job import Prepared
    from deltatune.training.recipes import AdaptersInfo

MOST_NOTES = 12
"""Notes that are shown; many adapters have many."""


def introduce_adapters(info: AdaptersInfo) -> None:
    """Print a row for each adapter, and the notes of all of them."""
    from deltatune.data import remarks
    from deltatune.training.learning_rates.recommended_rate import steps_of

    rows, notes = [], dict[str, list[str]]()
    for name, ready in info.prepared.items():
        session, settings, trained = ready.session, ready.settings, ready.encoded["train"]
        state = "finished before" if name in info.finished else plural(steps_of(settings, len(trained)), "step")
        size = count(session.adapter.count + session.adapter.head_count)
        rows.append([name, ready.data.origin, session.task.describe(), repr(session.adapter.method), size,
                     f"{state} of {settings.batch_size} rows", rate(settings.peak_rate)])  # fmt: skip
        said = [*ready.data.notes, *remarks(ready.data), *ready.notes, *truncation_notes(session.task, ready.encoded)]
        for note in said:
            notes.setdefault(note, []).append(name)
    session = next(iter(info.prepared.values())).session
    pairs = [("model", base_text(session.model, session.host)), ("folder", str(info.folder))]
    show(facts(pairs), "", aside=True)
    columns = ["adapter", "data", "task", "method", "trained", "training", "rate"]
    show(table(columns, rows, right=["trained", "rate"]), "", aside=True)
    lines = [("note", f"{note} ({_names(names, len(rows))})") for note, names in notes.items()]
    more = len(lines) - MOST_NOTES
    if more > 0:
        lines = [*lines[:MOST_NOTES], ("", f"and {plural(more, 'further note')}")]
    if lines:
        show(facts(lines), "", aside=True)
    if len(info.finished) == len(rows):
        show("This run was finished before; --force runs it again, --again NAME one adapter.\n", aside=True)


def _names(names: list[str], total: int) -> str:
    if len(names) == total:
        return "all"
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def report_adapters(prepared: Mapping[str, Prepared], metrics: Mapping[str, Any], folder: Path) -> None:
    """Print the scores of all adapters, and where they are."""
    rows = []
    for name, scores in metrics.items():
        task = prepared[name].session.task
        values = [scores.get(split, {}).get(task.metric) for split in ("validation", "test")]
        shown = ["" if value is None else f"{value:.3f}" for value in values]
        rows.append([name, task.metric_name(task.metric), *shown, seconds(scores["training"]["seconds"])])
    show(
        table(["adapter", "metric", "validation", "test", "seconds"], rows, right=["validation", "test", "seconds"]), ""
    )
    example = next(iter(metrics))
    say(f"Adapters: {folder}/NAME/adapter, such as {folder / example / 'adapter'}")
