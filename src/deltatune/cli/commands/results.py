"""`deltatune results`: the table of a finished comparison or study again, or as CSV, LaTeX, Markdown or JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltatune.cli.options.shared_options import OUTPUT, Json, option
from deltatune.cli.ui.comparison_screen import report
from deltatune.cli.ui.output_file import checked_output
from deltatune.cli.ui.screen import console, print_json, print_text, say, show, table, width_of
from deltatune.cli.ui.study_screen import quantizations_table
from deltatune.comparison.report.number_format import score
from deltatune.core.errors import DeltatuneError, nearest

if TYPE_CHECKING:
    from rich.table import Table

    from deltatune.comparison.results.finished_run import FinishedRun

SUFFIXES = {".csv": "csv", ".tex": "latex", ".md": "markdown", ".json": "json"}
"""Names of files that say the format by themselves."""
KEPT = ("summary.json", "study.json", "results.jsonl", "progress.json")
"""Files of a run that no export may overwrite."""
FORMATS = tuple(SUFFIXES.values())


def results(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="The folder of a comparison or a study, such as runs/sst2.")
    ],
    to: Annotated[
        str | None,
        option(
            "--to",
            panel=OUTPUT,
            metavar="FORMAT",
            help="csv and json: every number, a row for each method (and comparison); latex (booktabs) and markdown: a "
            "table to print. Default: by the name of --out, else the table of the terminal.",
        ),
    ] = None,
    out: Annotated[
        Path | None, option("--out", "-o", panel=OUTPUT, metavar="FILE", help="Default: the standard output.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the results of a finished comparison or study, or write them for a paper or a spreadsheet.

    Nothing is run again: the numbers are those in its folder.

      deltatune results runs/sst2
      deltatune results runs/sst2 --to latex
      deltatune results runs/study --out results.csv
    """
    if as_json and out is None:
        if to not in (None, "json"):
            raise DeltatuneError(f"--json prints JSON, --to {to} another format: leave one of them out, or give --out")
        to = "json"
    to = _format(to, out)
    from deltatune.comparison.report.exports import export
    from deltatune.comparison.results.finished_run import read_finished
    from deltatune.store.atomic_files import write_file

    finished = read_finished(run)
    if to is None:
        _show(finished)
        return
    text = export(finished, to)  # type: ignore[arg-type]  # checked
    if out is None:
        print_text(text)
        return
    write_file(checked_output(out, [finished.folder / name for name in KEPT]), text)
    if as_json:
        print_json({"out": str(out), "format": to})
        return
    say(f"results: {out}")


def _format(to: str | None, out: Path | None) -> str | None:
    """The format that is asked for, or that the name of the file says. Raises DeltatuneError for others."""
    if to is not None and to not in FORMATS:
        raise DeltatuneError(f"--to {to}: there are {', '.join(FORMATS)}{nearest(to, FORMATS)}")
    if to is None and out is not None:
        if out.suffix.lower() not in SUFFIXES:
            raise DeltatuneError(
                f"--out {out}: its name does not say the format ({', '.join(SUFFIXES)}); name it with --to, one of "
                f"{', '.join(FORMATS)}"
            )
        return SUFFIXES[out.suffix.lower()]
    return to


def _show(finished: FinishedRun) -> None:
    """The closing screen of a comparison; of a study the table, the recommendation and what failed."""
    if finished.kind == "comparison":
        report(dict(finished.content), finished.report)
        return
    study = finished.content
    if study["methods"]:
        show(study_table(study, console().width), "")
    sentence = str((study.get("recommendation") or {}).get("sentence") or "")
    if sentence:
        show(sentence)
    stored = quantizations_table(study)
    if stored is not None:
        show("", stored, "")
    for each in study["comparisons"]:
        if each.get("error"):
            where = ", ".join(str(value) for value in (each.get("at") or {}).values() if value is not None)
            show(f"failed: {where}: {str(each['error']).partition(chr(10))[0]}")
    say(f"report: {finished.report}")


def study_table(study: Any, width: int) -> Table:
    """A row for each method: its score in every comparison where the terminal is wide enough, its mean, its rank."""
    from deltatune.comparison.report.study_results import StudyResults

    results = StudyResults(study)
    columns = ["method", *(results.label(each) for each in results.comparisons), "mean", "rank"]
    rows = [
        [
            method.asked,
            *(score(results.score(method, each)) for each in results.comparisons),
            score(method.mean),
            "–" if method.rank is None else f"{method.rank:.1f}",
        ]
        for method in results.methods
    ]
    if width_of(columns, rows) > width:
        columns, rows = ["method", "mean", "rank"], [[row[0], *row[-2:]] for row in rows]
    return table(columns, rows, right=columns[1:])
