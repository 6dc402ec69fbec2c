"""`deltatune watch`: follow a running comparison or study in a local page, or print where it is."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltatune.cli.options.shared_options import OUTPUT, Json, option
from deltatune.cli.ui.screen import console, facts, print_json, say, show, table, width_of
from deltatune.comparison.report.number_format import rate, score, seconds
from deltatune.core.errors import DeltatuneError

if TYPE_CHECKING:
    from rich.table import Table

    from deltatune.comparison.results.run_state import RunState, StudyState


def watch(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="The folder of a comparison or a study, such as runs/sst2.")
    ],
    port: Annotated[
        int | None,
        option("--port", "-p", panel=OUTPUT, metavar="NUMBER", help="Port of the page. Default: a free one."),
    ] = None,
    once: Annotated[
        bool, option("--once", panel=OUTPUT, help="Print where the run is, and end; no page is served.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Follow a comparison or a study in a page that refreshes itself: finished runs, the table so far, the time left.

    The page is served to this machine alone, until Ctrl-C; the run does not notice. It also shows runs that have ended
    or were killed.

      deltatune watch runs/sst2
      deltatune watch runs/sst2 --once
    """
    if port is not None and not 0 <= port <= 65535:
        raise DeltatuneError(f"--port {port}: ports are numbers from 1 to 65535; leave --port out to take a free one")
    from deltatune.comparison.results.run_state import StateReader

    if once:
        state = StateReader(run).read()
        if as_json:
            print_json(_content(state))
        else:
            _print(state)
        return
    from deltatune.cli.watch_server import WatchServer

    with WatchServer(run, port or 0) as server:
        try:
            if as_json:
                print_json({"address": server.address, "run": str(run)})
            else:
                say(f"{server.address} follows {run}; Ctrl-C ends this, not the run")
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            say("\nno longer followed", aside=True)


def _content(state: RunState | StudyState) -> dict[str, Any]:
    """The state as plain data; folders as text."""
    return dataclasses.asdict(
        state, dict_factory=lambda pairs: {key: str(each) if isinstance(each, Path) else each for key, each in pairs}
    )


def _print(state: RunState | StudyState) -> None:
    from deltatune.comparison.results.run_state import StudyState

    if isinstance(state, StudyState):
        done = sum(run.state == "finished" for run in state.runs)
        show(
            facts([("study", str(state.folder)), ("state", f"{state.state}, {done} of {len(state.runs)} finished")]), ""
        )
        show(_comparisons(state.runs), "")
    else:
        _print_run(state)
    if state.sentence:
        show(state.sentence)
    if state.report is not None:
        say(f"report: {state.report}")


def _print_run(run: RunState) -> None:
    from deltatune.comparison.report.watch_page import progress_text, state_text

    pairs = [("comparison", str(run.folder)), ("state", state_text(run)), ("finished", f"{progress_text(run)} runs")]
    if run.seconds_left is not None:
        pairs.append(("left", f"about {seconds(run.seconds_left)}"))
    pairs += [("now", step) for step in run.now]
    show(facts(pairs), "")
    if run.methods:
        show(_methods(run), "")
    for failure in run.failures:
        show(f"failed: {failure}")


def _methods(run: RunState) -> Table:
    columns = ["method", "runs", "validation", "learning rate", "test"]
    rows = [
        [each.method, str(each.runs or each.tested), score(each.validation), rate(each.rate), score(each.test)]
        for each in run.methods
    ]
    if width_of(columns, rows) > console().width:
        columns, rows = [columns[0], *columns[2::2]], [[row[0], *row[2::2]] for row in rows]
    return table(columns, rows, right=columns[1:])


def _comparisons(runs: tuple[RunState, ...]) -> Table:
    from deltatune.comparison.report.watch_page import progress_text

    rows = [[run.name, run.state, progress_text(run), run.methods[0].method if run.methods else "–"] for run in runs]
    return table(["comparison", "state", "runs", "best so far"], rows, right=["runs"])
