"""`deltatune data check SOURCE`: describe data, and report everything that is wrong with them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from deltatune.cli.options.data_options import TestFile, ValidationFile
from deltatune.cli.options.shared_options import DATA, SOURCE, Json, Kind, Label, Limit, Text, option
from deltatune.cli.ui.help_screen import Command, Group
from deltatune.cli.ui.screen import facts, plural, print_json, show, table
from deltatune.comparison.report.number_format import count
from deltatune.core.errors import DeltatuneError

SHOWN = 12
"""Labels in the table; the others are added up in one line."""

group = typer.Typer(cls=Group, help="Check data before training.", invoke_without_command=True)
"""The commands of `deltatune data`."""


@group.callback()
def start(context: typer.Context) -> None:
    """Print the help where no command is named."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@group.command(cls=Command)
def check(
    source: Annotated[str | None, typer.Argument(metavar="SOURCE", help=SOURCE)] = None,
    data: Annotated[
        str | None, option("--data", "-d", panel=DATA, metavar="DATA", help="The same as SOURCE, as in train.")
    ] = None,
    task: Kind = None,
    text: Text = None,
    label: Label = None,
    limit: Limit = None,
    validation: ValidationFile = None,
    test: TestFile = None,
    as_json: Json = False,
) -> None:
    """Read data as train would, describe them, and report everything that is wrong with them.

    It shows what was inferred, the rows and the text lengths of each split, the labels, every problem (the data cannot
    be trained on) and every remark (scores will mean less than they seem). Exits with 1 where there are problems.

      deltatune data check reviews.csv
      deltatune data check --data reviews.csv --test more.csv --limit 1000
      deltatune data check notes.jsonl --task generate --text note --label summary
    """
    from deltatune.data import remarks
    from deltatune.data.checks import file_problems
    from deltatune.data.dataset import describe
    from deltatune.data.read_data import read_source

    checked = read_source(
        one_source(source, data),
        text=text or [],
        label=label,
        task=task,  # type: ignore[arg-type]
        validation=validation,
        test=test,
        limit=limit,
        strict=False,
    )
    problems = [*checked.problems, *file_problems(checked)]
    figures = describe(checked) | {"problems": problems, "remarks": remarks(checked)}
    if as_json:
        print_json(figures)
    else:
        _show(figures)
    if problems:
        raise typer.Exit(1)


def one_source(source: str | None, data: str | None) -> str:
    """The source, named as an argument or as --data. Raises DeltatuneError where it is named in no way or in two."""
    if source is not None and data is not None and source != data:
        raise DeltatuneError(f"which data are checked: {source} or --data {data}? Name one of them.")
    chosen = data if source is None else source
    if chosen is None:
        raise DeltatuneError("no data are named: deltatune data check FILE, or --data FILE")
    return chosen


def _show(figures: dict[str, Any]) -> None:
    """Print what was read, tables of lengths and labels, then problems and remarks."""
    columns = ", ".join(figures["text"])
    label = figures["label"] if figures["label"] not in figures["text"] else ""
    pairs = [
        ("data", figures["origin"]),
        ("task", figures["task"] + (", any number of classes a row" if figures["kind"] == "many" else "")),
        ("columns", f"{columns} → {label}" if label else columns),
        *(("note", note) for note in figures["notes"]),
    ]
    show(facts(pairs), "")
    _lengths(figures["splits"])
    _label_statistics(figures)
    findings = [("problem", text) for text in figures["problems"]] + [("remark", text) for text in figures["remarks"]]
    if findings:
        show(facts(findings), "")
    counts = [plural(len(figures[name]), name[:-1]) for name in ("problems", "remarks")]
    verdict = "It cannot be trained on as it is" if figures["problems"] else "It can be trained on"
    show(f"{verdict}: {' and '.join(counts)}.")


def _lengths(splits: dict[str, Any]) -> None:
    """Print a line for each text column of each split; of files, whose lengths are not known, their number."""
    if not any(figures["lengths"] for figures in splits.values()):
        counts = [(split, count(figures["rows"])) for split, figures in splits.items()]
        show(table(("split", "rows"), counts, right=("rows",), whole=("split",)), "")
        return
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


def _label_statistics(figures: dict[str, Any]) -> None:
    """Print the distribution of the labels."""
    splits: dict[str, Any] = figures["splits"]
    if figures["kind"] == "number":
        rows = [(split, *(f"{value:g}" for value in part["values"].values())) for split, part in splits.items()]
        show(table(("split", "least", "median", "largest"), [row for row in rows if len(row) == 4]), "")
    elif "labels" in splits["train"]:
        _labels({split: part["labels"] for split, part in splits.items()}, figures["kind"])
    elif figures["kind"] == "span":
        numbers = ", ".join(f"{count(part['unanswerable'])} {split}" for split, part in splits.items())
        show(f"Rows without an answer: {numbers}.\n")
    elif figures["kind"] == "text":
        means = ", ".join(f"{part['references']:.1f} {split}" for split, part in splits.items())
        show(f"References per row, on average: {means}.\n")


def _labels(counts: dict[str, dict[str, int]], kind: str) -> None:
    """Print how often each label occurs, the most frequent first."""
    totals = {split: sum(number_of.values()) for split, number_of in counts.items()}
    names = list(dict.fromkeys(name for number_of in counts.values() for name in number_of))
    rows = [
        (str(name), *(_share(number_of.get(name, 0), totals[split]) for split, number_of in counts.items()))
        for name in names[:SHOWN]
    ]
    if len(names) > SHOWN:
        rest = [sum(number_of.get(name, 0) for name in names[SHOWN:]) for number_of in counts.values()]
        rows.append((f"{len(names) - SHOWN} more", *map(_share, rest, totals.values())))
    show(table(("tag" if kind == "tags" else "label", *counts), rows, right=tuple(counts)), "")


def _share(number: int, total: int) -> str:
    return f"{count(number)} ({100 * number / total:.0f} %)" if total and number else "–"
