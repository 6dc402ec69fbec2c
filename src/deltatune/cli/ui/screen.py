"""What all commands print with: consoles, tables, JSON."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from deltatune.comparison.report.number_format import score

if TYPE_CHECKING:
    from deltatune.tasks import Encoded, Task


PIPED_WIDTH = 120
"""Columns where the output is no terminal and COLUMNS does not say: logs are wider than the 80 that rich assumes."""


def console(stderr: bool = False) -> Console:
    """A console on today's stdout or stderr. Text is printed as it is: brackets in it are no markup."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else PIPED_WIDTH
    return Console(file=stream, width=width, markup=False, highlight=False, emoji=False)


def show(*parts: RenderableType, stderr: bool = False) -> None:
    """Print tables and texts; where no terminal is, without blanks at the ends of lines."""
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
    """Print one line as it is, however long: paths and commands must stay in one piece."""
    print(line, flush=True)


def plural(number: float, thing: str) -> str:
    """1 epoch, 3 epochs, 0.5 epochs."""
    return f"{number:g} {thing}{'' if number == 1 else 's'}"


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    right: Sequence[str] = (),
    whole: Sequence[str] = (),
    gap: int = 2,
) -> Table:
    """A table without lines; columns named in `right` hold numbers, those in `whole` are never wrapped."""
    found = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="bold")
    for name in columns:
        side = "right" if name in right else "left"
        found.add_column(name, justify=side, no_wrap=name in right or name in whole, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        found.add_row(*row)
    return found


def facts(pairs: Iterable[Sequence[str]]) -> Table:
    """Names and values in aligned columns."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    for row in pairs:
        grid.add_row(*row)
    return grid


def print_json(value: Any) -> None:
    """JSON on stdout, for programs: no colours, no wrapping."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def cut_notes(task: Any, encoded: dict[str, Encoded]) -> list[str]:
    """What is to be said of rows that were longer than the task allows."""
    cut = [f"{rows.truncated} of {rows.examples} {split}" for split, rows in encoded.items() if rows.truncated]
    if not cut:
        return []
    if task.to_json()["task"] == "span":
        return [f"read in windows of {task.max_length} tokens because they are longer: {', '.join(cut)} passages"]
    return [f"cut at {task.max_length} tokens because they are longer: {', '.join(cut)} texts"]


def scores_table(task: Task, splits: Mapping[str, Mapping[str, float]]) -> Table:
    """A row for each split, the task's own metric first; metrics that only repeat an earlier one are left out."""
    found = list(splits.values())
    names: list[str] = []
    for name in [task.metric, *found[0]]:
        if not any(all(scores[name] == scores[other] for scores in found) for other in names):
            names.append(name)
    rows = [[split, *(score(scores[name]) for name in names)] for split, scores in splits.items()]
    return table(["", *names], rows, right=names)
