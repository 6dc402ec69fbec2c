"""`deltatune data check SOURCE`: what data are, and everything that is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from deltatune.cli.options import DATA, SOURCE, Json, Kind, Label, Limit, Text, option
from deltatune.cli.ui.help_screen import Command, Group
from deltatune.cli.ui.screen import facts, plural, print_json, show, table
from deltatune.comparison.report.number_format import count

SHOWN = 12
"""Labels in the table; the others are counted."""


group = typer.Typer(cls=Group, help="Look at data before anything is trained on them.", invoke_without_command=True)
"""`deltatune data`: its commands."""


@group.callback()
def start(context: typer.Context) -> None:
    """What comes before a command."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@group.command(cls=Command)
def check(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help=SOURCE)],
    task: Kind = None,
    text: Text = None,
    label: Label = None,
    limit: Limit = None,
    validation: Annotated[
        Path | None, option("--validation", panel=DATA, metavar="FILE", help="Rows of another file for validation.")
    ] = None,
    test: Annotated[
        Path | None, option("--test", panel=DATA, metavar="FILE", help="Rows of another file for the test.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Read data as train would, and say what they are and what is wrong with them.

    It shows what was guessed, the rows and lengths of each split, the labels, every problem (nothing can be trained)
    and every remark (what a score will mean less for). Exits with 1 where there are problems.

      deltatune data check reviews.csv
      deltatune data check notes.jsonl --task generate --text note --label summary
    """
    from deltatune.data import read, remarks
    from deltatune.data.dataset import describe

    data = read(
        source,
        text=text or [],
        label=label,
        task=task,  # type: ignore[arg-type]
        validation=validation,
        test=test,
        limit=limit,
        strict=False,
    )
    figures = describe(data) | {"problems": list(data.problems), "remarks": remarks(data)}
    if as_json:
        print_json(figures)
    else:
        _show(figures)
    if data.problems:
        raise typer.Exit(1)


def _show(figures: dict[str, Any]) -> None:
    """The screen: what was read, tables, then what is to be said."""
    columns = ", ".join(figures["text"])
    answer = figures["label"] if figures["label"] and figures["label"] not in figures["text"] else ""
    pairs = [
        ("data", figures["origin"]),
        ("task", figures["task"] + (", any number of classes a row" if figures["kind"] == "many" else "")),
        ("columns", f"{columns} → {answer}" if answer else columns),
        *(("note", note) for note in figures["notes"]),
    ]
    show(facts(pairs), "")
    _lengths(figures["splits"])
    _answers(figures)
    said = [("problem", text) for text in figures["problems"]] + [("remark", text) for text in figures["remarks"]]
    if said:
        show(facts(said), "")
    counted = [plural(len(figures[name]), name[:-1]) for name in ("problems", "remarks")]
    can = "It cannot be trained on as it is" if figures["problems"] else "It can be trained on"
    show(f"{can}: {' and '.join(counted)}.")


def _lengths(splits: dict[str, Any]) -> None:
    """A line for each text column of each split."""
    rows = [
        (
            split if first else "",
            count(figures["rows"]) if first else "",
            column,
            *(f"{lengths[unit][which]:,.0f}" for unit in ("words", "characters") for which in ("median", "longest")),
        )
        for split, figures in splits.items()
        for first, (column, lengths) in zip([True, *[False] * 20], figures["lengths"].items(), strict=False)
    ]
    names = ("split", "rows", "column", "words", "longest", "characters", "longest ")
    show(table(names, rows, right=("rows", *names[3:]), whole=("split", "column")), "")


def _answers(figures: dict[str, Any]) -> None:
    """How the answers are distributed."""
    splits: dict[str, Any] = figures["splits"]
    if figures["kind"] == "number":
        rows = [(split, *(f"{value:g}" for value in found["values"].values())) for split, found in splits.items()]
        show(table(("split", "least", "median", "largest"), [row for row in rows if len(row) == 4]), "")
    elif "labels" in splits["train"]:
        _labels({split: found["labels"] for split, found in splits.items()}, figures["kind"])
    elif figures["kind"] == "span":
        none = ", ".join(f"{count(found['unanswerable'])} {split}" for split, found in splits.items())
        show(f"Rows without an answer: {none}.\n")
    elif figures["kind"] == "text":
        mean = ", ".join(f"{found['references']:.1f} {split}" for split, found in splits.items())
        show(f"References a row, on average: {mean}.\n")


def _labels(counts: dict[str, dict[str, int]], kind: str) -> None:
    """How often each label occurs, the most frequent first."""
    totals = {split: sum(found.values()) for split, found in counts.items()}
    names = list(dict.fromkeys(name for found in counts.values() for name in found))
    rows = [
        (str(name), *(_share(found.get(name, 0), totals[split]) for split, found in counts.items()))
        for name in names[:SHOWN]
    ]
    if len(names) > SHOWN:
        rest = [sum(found.get(name, 0) for name in names[SHOWN:]) for found in counts.values()]
        rows.append((f"{len(names) - SHOWN} more", *map(_share, rest, totals.values())))
    show(table(("tag" if kind == "tags" else "label", *counts), rows, right=tuple(counts)), "")


def _share(number: int, total: int) -> str:
    return f"{count(number)} ({100 * number / total:.0f} %)" if total and number else "–"
