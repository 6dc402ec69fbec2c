"""Screens of a paper's table: its experiment as it runs, then published figures beside those measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from deltatune.cli.ui.comparison_live import ComparisonProgress
from deltatune.cli.ui.error_screen import Interrupted
from deltatune.cli.ui.live import Bar
from deltatune.cli.ui.screen import plural, print_json, say, show, table
from deltatune.cli.ui.study_screen import run_on_screen
from deltatune.comparison.report.number_format import clip, score
from deltatune.store.atomic_files import read_json

if TYPE_CHECKING:
    from deltatune.comparison.plans.plan import Plan

METHOD_WIDTH, PLACE_WIDTH = 40, 40
"""Most characters of a method and of a place on the screen; the report has them whole."""
BAR = ("latency", "facts")
"""Experiments with one progress bar; the others show each of their trainings."""
MOST_ROWS = 60
"""Measured figures that are printed."""


def run_table_on_screen(path: Path, overrides: Sequence[str], as_json: bool) -> None:
    """Run the table recipe at `path`, following its experiment, and print its figures."""
    from deltatune.comparison.tables import prepare_folder, read_table, run_table, study_of_table
    from deltatune.training.recipes import as_yaml

    recipe = read_table(path, overrides)
    out = Path(recipe.out) if recipe.out is not None else Path("runs") / path.stem
    say(as_yaml(recipe), aside=True)
    if recipe.compare is not None:
        prepare_folder(recipe, out)
        run_on_screen(study_of_table(recipe, out), as_json)
        if not as_json and recipe.published:
            from deltatune.comparison.tables.measured_figures import beside_study

            study = read_json(out / "study.json")
            show("", published_figures(beside_study(study)), *sources(study["published"]))
        return
    watch = TableWatch()
    try:
        with watch.bar if recipe.kind in BAR else nullcontext():
            result = run_table(recipe, out, watch.callbacks())
    except KeyboardInterrupt:
        raise Interrupted(f"what is finished is kept in {out}; the same command resumes") from None
    if as_json:
        print_json(result)
        return
    measured = result["measured"]
    show(measured_figures(measured[:MOST_ROWS]), "")
    if len(measured) > MOST_ROWS:
        show(f"{plural(len(measured) - MOST_ROWS, 'more figure')} in the report", "")
    if result["published"]:
        show(published_figures(result["published"]), *sources(result["published"]), "")
    for note in result["notes"]:
        show(f"note: {note}")
    say(f"report: {out / 'table.html'}")


class TableWatch:
    """Shows the progress of whichever experiment a table has."""

    def __init__(self) -> None:
        self.bar = Bar("measuring")

    def callbacks(self) -> Any:
        """What `run_table` calls."""
        from deltatune.comparison.tables import Watch

        return Watch(on_search=self._search, on_training=self._training, on_cell=self._cell, on_question=self._question)

    @contextmanager
    def _search(self, plan: Plan) -> Iterator[ComparisonProgress]:
        show(f"\n{plan.name}: {plan.out.name}", stderr=True)
        with ComparisonProgress(plan.session.task.metric) as progress:
            yield progress

    def _training(self, text: str, scores: Mapping[str, float]) -> None:
        say(f"{text}: {', '.join(f'{name} {score(value)}' for name, value in scores.items())}", aside=True)

    def _cell(self, done: int, total: int, batch: int, length: int) -> None:
        self.bar.update(done, total, f"{plural(batch, 'row')} of {plural(length, 'token')}")

    def _question(self, done: int, total: int, text: str) -> None:
        self.bar.update(done, total, clip(text, PLACE_WIDTH))


def published_figures(figures: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each published figure, with what was measured in its place."""
    from deltatune.comparison.tables.table_page import figure_text

    rows = []
    for figure in figures:
        here = figure["here"]
        apart = "" if here is None else f"{here - figure['value']:+.3g}".replace("-", "−")
        rows.append([*_place(figure), Text(figure_text(figure["value"])), Text(figure_text(here)), Text(apart)])
    right = ["published", "here", "difference"]
    return table(["method", "on", "metric", *right], rows, right=right)


def measured_figures(figures: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each measured figure."""
    from deltatune.comparison.tables.table_page import figure_text

    rows = [[*_place(figure), Text(figure_text(figure["value"]))] for figure in figures]
    return table(["method", "on", "metric", "figure"], rows, right=["figure"])


def sources(figures: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each source of published figures."""
    return [f"published: {source}" for source in dict.fromkeys(figure["source"] for figure in figures)]


def _place(figure: Mapping[str, Any]) -> list[Text]:
    from deltatune.comparison.tables.table_page import place_text

    return [
        Text(clip(figure["method"], METHOD_WIDTH)),
        Text(clip(place_text(figure["at"]), PLACE_WIDTH)),
        Text(figure["metric"]),
    ]
