"""Output of the commands: consoles, tables, JSON, notes."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from deltatune.comparison.report.number_format import score
from deltatune.core.strict_json import dumps

if TYPE_CHECKING:
    from deltatune.tasks import Encoded, Task


PIPED_WIDTH = 120
"""Columns if the output is not a terminal and COLUMNS is not set: logs are wider than the 80 that rich assumes."""


def console(stderr: bool = False) -> Console:
    """Return a console on the current stdout or stderr. Brackets in texts are not markup."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else PIPED_WIDTH
    return Console(file=stream, width=width, markup=False, highlight=False, emoji=False)


def show(*parts: RenderableType, stderr: bool = False) -> None:
    """Print tables and texts; outside a terminal without trailing spaces."""
    target = console(stderr)
    if target.is_terminal:
        target.print(*parts, sep="\n")
        target.file.flush()
        return
    draft = Console(file=io.StringIO(), width=target.width, markup=False, highlight=False, emoji=False)
    draft.print(*parts, sep="\n")
    assert isinstance(draft.file, io.StringIO)
    target.file.write("\n".join(line.rstrip() for line in draft.file.getvalue().split("\n")))
    target.file.flush()  # stdout and stderr may end in one log


def say(line: str) -> None:
    """Print one line without wrapping: paths and commands must stay in one piece."""
    print(line, flush=True)


def plural(number: float, noun: str) -> str:
    """1 epoch, 3 epochs, 0.5 epochs."""
    return f"{number:g} {noun}{'' if number == 1 else 's'}"


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    right: Sequence[str] = (),
    whole: Sequence[str] = (),
    gap: int = 2,
) -> Table:
    """Make a table without lines; columns in `right` are right-aligned numbers, columns in `whole` never wrap."""
    grid = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="bold")
    for name in columns:
        side = "right" if name in right else "left"
        grid.add_column(name, justify=side, no_wrap=name in right or name in whole, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        grid.add_row(*row)
    return grid


def facts(pairs: Iterable[Sequence[str]]) -> Table:
    """Make a grid of names and values in aligned columns."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    for row in pairs:
        grid.add_row(*row)
    return grid


def print_json(value: Any) -> None:
    """Print JSON on stdout for programs: no colours, no wrapping."""
    print(dumps(value, nonfinite="null", indent=2))


def truncation_notes(task: Any, encoded: Mapping[str, Encoded]) -> list[str]:
    """Notes about rows longer than the task allows: truncated, or split into windows."""
    counts = [f"{rows.truncated} of {rows.examples} {split}" for split, rows in encoded.items() if rows.truncated]
    if not counts:
        return []
    if task.to_json()["task"] == "span":
        return [f"split into windows of {task.max_length} tokens: {', '.join(counts)} passages"]
    return [f"truncated to {task.max_length} tokens: {', '.join(counts)} texts"]


def scores_table(task: Task, splits: Mapping[str, Mapping[str, float]]) -> Table:
    """Make a table with a row per split, the task's metric first; metrics equal to an earlier one are left out."""
    all_scores = list(splits.values())
    names: list[str] = []
    for name in [task.metric, *all_scores[0]]:
        if not any(all(scores[name] == scores[other] for scores in all_scores) for other in names):
            names.append(name)
    rows = [[split, *(score(scores[name]) for name in names)] for split, scores in splits.items()]
    headers = [task.metric_name(name) for name in names]
    return table(["", *headers], rows, right=headers)
