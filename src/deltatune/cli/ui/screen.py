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

from deltatune.cli.ui.output_mode import CURRENT, aside_stream, result_stream
from deltatune.comparison.report.number_format import count, score, size
from deltatune.core.input_validation.strict_json import dumps

if TYPE_CHECKING:
    from deltatune.core.host import Host
    from deltatune.tasks import Encoded, Task


PIPED_WIDTH = 120
"""Columns if the output is not a terminal and COLUMNS is not set: logs are wider than the 80 that rich assumes."""
MIN_WIDTH = 40
"""Columns of a narrower terminal: rich leaves out what does not fit, and shows nothing in none; the terminal wraps."""
NARROW_TEXT = 8
"""Characters that a column of texts keeps beside numbers which need more than the screen."""


def console(stderr: bool = False, aside: bool = False) -> Console:
    """Return a console on the current stdout or stderr. Brackets in texts are not markup."""
    stream = sys.stderr if stderr else aside_stream() if aside else sys.stdout
    given = os.environ.get("COLUMNS", "")
    columns = int(given) if given.isdecimal() and len(given) < 6 else 0
    width = columns or (None if stream.isatty() else PIPED_WIDTH)
    made = Console(file=stream, width=width, markup=False, highlight=False, emoji=False)
    if made.width < MIN_WIDTH:
        made.width = MIN_WIDTH
    return made


def show(*parts: RenderableType, stderr: bool = False, aside: bool = False) -> None:
    """Print tables and texts; outside a terminal without trailing spaces.

    `aside`: what a command says beside its result, which --quiet leaves out.
    """
    target = console(stderr, aside)
    if target.is_terminal:
        _print_parts(target, parts)
        target.file.flush()
        return
    draft = Console(file=io.StringIO(), width=target.width, markup=False, highlight=False, emoji=False)
    _print_parts(draft, parts)
    assert isinstance(draft.file, io.StringIO)
    target.file.write("\n".join(line.rstrip() for line in draft.file.getvalue().split("\n")))
    target.file.flush()  # stdout and stderr may end in one log


def _print_parts(target: Console, parts: Sequence[RenderableType]) -> None:
    """Print parts under each other. A table whose numbers need more than the screen is as wide as they are."""
    width = target.width
    for part in parts:
        if isinstance(part, Table) and any(column.min_width for column in part.columns):
            gap = part.padding[1]
            least = sum((column.min_width or NARROW_TEXT) + gap for column in part.columns)
            target.width = max(width, least)
        target.print(part)
        target.width = width


def say(line: str, aside: bool = False) -> None:
    """Print one line without wrapping: paths and commands must stay in one piece. `aside`: as in `show`."""
    print(line, file=aside_stream() if aside else None, flush=True)


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
    """Make a table without lines; columns in `right` are right-aligned numbers, columns in `whole` never wrap.

    A number is never cut, however narrow the screen: 44 would become 4.
    """
    rows = [list(row) for row in rows]
    grid = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="bold")
    for name in columns:
        side = "right" if name in right else "left"
        grid.add_column(name, justify=side, no_wrap=name in right or name in whole, overflow="fold")  # type: ignore[arg-type]
    for i, column in enumerate(grid.columns):
        if column.no_wrap:
            column.min_width = max(len(cell) for cell in [columns[i], *(row[i] for row in rows if i < len(row))])
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
    """Print the result as JSON on stdout for programs: no colours, no wrapping."""
    print(dumps(value, nonfinite="null", indent=2), file=result_stream(), flush=True)
    CURRENT.answered = True


def print_text(text: str) -> None:
    """Print a result that is written already, JSON among others, as it is."""
    result_stream().write(text)
    result_stream().flush()
    CURRENT.answered = True


def print_json_line(value: Any) -> None:
    """Print a result of several as one line of JSON on stdout."""
    print(dumps(value, nonfinite="null"), file=result_stream(), flush=True)


def truncation_notes(task: Any, encoded: Mapping[str, Encoded]) -> list[str]:
    """Notes about rows longer than the task allows: truncated, or split into windows."""
    parts = getattr(task, "parts", None)
    if parts is not None:
        by_part = {name: {split: rows.parts.get(name) for split, rows in encoded.items()} for name in parts}  # type: ignore[attr-defined]
        return [
            f"{name}: {note}"
            for name, splits in by_part.items()
            for note in truncation_notes(parts[name], {split: rows for split, rows in splits.items() if rows})
        ]
    counts = [f"{rows.truncated} of {rows.examples} {split}" for split, rows in encoded.items() if rows.truncated]
    if not counts:
        return []
    if in_windows(task):
        return [f"split into windows of {task.max_length} tokens: {', '.join(counts)} passages"]
    cut = f"truncated to {task.max_length} tokens: {', '.join(counts)} texts"
    return [cut, *(f"{split}: {note}" for split, rows in encoded.items() for note in rows.notes)]


def in_windows(task: Any) -> bool:
    """Whether long texts are read whole, in several windows, and not truncated."""
    return bool(task.to_json()["task"] == "span")


def long_texts(task: Any, rows: int, total: int | None = None) -> str:
    """A sentence on the rows longer than the task allows: truncated, or split into windows."""
    number, counted = (f"{rows}", rows) if total is None else (f"{rows} of {total}", total)
    if in_windows(task):
        return f"{number} {'passage' if counted == 1 else 'passages'} split into windows of {task.max_length} tokens"
    what = "sound" if task.inputs == "audio" else "text"
    return f"{number} {what if counted == 1 else what + 's'} truncated to the adapter's limit"


REPEATED = ("f1_micro", "f1_macro")
"""Metrics that are another one by another name for some tasks: the accuracy, or the f1 of more classes than two."""


def scores_table(task: Task, splits: Mapping[str, Mapping[str, float]]) -> Table:
    """Make a table with a row per split, the task's metric first; an F1 equal to an earlier metric is left out.

    A split may lack metrics, such as those of a mixture's other parts.
    """
    all_scores = list(splits.values())
    names: list[str] = []
    for name in dict.fromkeys([task.metric, *(name for scores in all_scores for name in scores)]):
        same = any(all(scores.get(name) == scores.get(other) for scores in all_scores) for other in names)
        if not (same and name in REPEATED):
            names.append(name)
    rows = [[split, *(score(scores.get(name)) for name in names)] for split, scores in splits.items()]
    headers = metric_headers(task, names)
    if width_of(["", *headers], rows) <= console().width:
        return table(["", *headers], rows, right=headers)
    turned = [[header, *(row[i] for row in rows)] for i, header in enumerate(headers, 1)]
    return table(["", *splits], turned, right=list(splits))  # a row for each metric: no number is cut


def metric_headers(task: Task, names: Sequence[str]) -> list[str]:
    """Names of metrics as headers; the class that several of them are of stands in the first one."""
    headers, seen = [], set()
    for name in names:
        full = task.metric_name(name)
        headers.append(name if full.removeprefix(name) in seen else full)
        seen.add(full.removeprefix(name))
    return headers


def width_of(columns: Sequence[str], rows: Sequence[Sequence[str | Text]], gap: int = 2) -> int:
    """Width of a table of which no column is cut, in characters."""
    return sum(max(len(cell) for cell in cells) + gap for cells in zip(columns, *rows, strict=True))


def base_text(model: str, host: Host) -> str:
    """A base in a line: its name, class, parameters and bytes, and what its linear maps are quantised to."""
    from deltatune.store.fingerprint import quantizations

    labels = quantizations(host)
    stored = f", linear maps in {', '.join(labels)}" if labels else ""
    facts = host.sites.facts.architecture, f"{count(host.sites.base_params)} parameters", size(host.base.bytes)
    return f"{model}: {', '.join(facts)}{stored}"
