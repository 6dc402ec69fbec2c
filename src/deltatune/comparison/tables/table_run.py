"""Run of a table recipe: its experiment, then published figures beside those measured, as JSON and as a page."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deltatune.comparison.continual import continual_plan, continual_run
from deltatune.comparison.costs.latency_benchmark import LatencyBenchmark, OnCell
from deltatune.comparison.costs.latency_grid import LatencyGrid
from deltatune.comparison.costs.method_counts import CountingHost, storage
from deltatune.comparison.costs.training_memory import CountedTraining
from deltatune.comparison.intrinsic_dimension.dimension_config import DimensionConfig, plan_search
from deltatune.comparison.intrinsic_dimension.dimension_report import draw_curve, summarise_search
from deltatune.comparison.intrinsic_dimension.dimension_search import search_dimension
from deltatune.comparison.plans.plan import Plan
from deltatune.comparison.results.records import OTHERS, RESULTS, write_summary
from deltatune.comparison.study.study_plan import Point, folder_names
from deltatune.comparison.study.study_run import LastHost, OnStage
from deltatune.comparison.study.study_run import run as run_study
from deltatune.comparison.tables.measured_figures import (
    Figure,
    beside,
    beside_study,
    continual_figures,
    dimension_figures,
    fact_figures,
    latency_figures,
    storage_figures,
)
from deltatune.comparison.tables.table_file import data_sets
from deltatune.comparison.tables.table_page import write_table_page
from deltatune.comparison.tables.table_schema import Continual, Dimension, FactWordings, Latency, Storage, TableRecipe
from deltatune.comparison.tables.table_study import PointRows, study_of_table
from deltatune.comparison.works.cells import OnEvent
from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.registry import parse_tuning
from deltatune.data.mixture_data import read_parts
from deltatune.prompting.facts.fact_questions import FactStudy
from deltatune.prompting.facts.fact_study import AskProgress
from deltatune.prompting.facts.fact_study import run_study as ask_facts
from deltatune.store.atomic_files import make_folder, write_file
from deltatune.store.folder_lock import FolderLock
from deltatune.training.recipes.recipe_files import as_yaml

RECIPE, RESULT, PAGE = "table.yaml", "table.json", "table.html"
"""Files of a table's run: the recipe with all overrides, the result, its page. A comparison has study.json and
study.html instead of the last two."""


def no_events(plan: Plan) -> AbstractContextManager[OnEvent | None]:
    """Follow nothing."""
    return nullcontext()


@dataclass(frozen=True)
class Watch:
    """What follows an experiment; of each table one of them is called."""

    on_stage: OnStage | None = None
    """Entered for every comparison of a study."""
    on_search: Callable[[Plan], AbstractContextManager[OnEvent | None]] = no_events
    """Entered for every search for a dimension."""
    on_training: Callable[[str, Mapping[str, float]], None] | None = None
    """Called after every training of continual learning."""
    on_cell: OnCell | None = None
    """Called after every cell of latencies."""
    on_question: AskProgress | None = None
    """Called before every wording of facts."""


def run_table(recipe: TableRecipe, out: str | Path, watch: Watch | None = None) -> dict[str, Any]:
    """Run what is left of a table's experiment in the folder `out`; the same call resumes.

    Returns {"schema", "kind", "title", "experiment", "measured", "published", "notes", ...}: `measured` are rows
    {"method", "at", "metric", "value"}, `published` rows have "source" and, as "here", what was measured in their
    place, or None. Of a comparison the result is that of its study, whose `published` rows have "here" too. The result
    and a page are written to the folder. Raises DeltatuneError before anything is trained for what cannot run.
    """
    folder, watch = Path(out), watch or Watch()
    prepare_folder(recipe, folder)
    if recipe.compare is not None:
        study = run_study(study_of_table(recipe, folder), watch.on_stage)
        return {**study, "published": beside_study(study)}
    started = time.perf_counter()
    experiment = recipe.experiment
    refusals: list[str] = []
    if isinstance(experiment, Dimension):
        measured, refusals = _dimensions(experiment, folder, watch)
    elif isinstance(experiment, Continual):
        measured = _continual(experiment, folder, watch)
    elif isinstance(experiment, Latency):
        measured = _latencies(experiment, watch)
    elif isinstance(experiment, FactWordings):
        measured = _facts(experiment, watch)
    else:
        assert isinstance(experiment, Storage)
        measured = _storage(experiment)
    result = {
        "schema": 1,
        "kind": "table",
        "title": recipe.title,
        "experiment": recipe.kind,
        "settings": experiment.model_dump(mode="json"),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "elapsed_seconds": time.perf_counter() - started,
        "measured": measured,
        "published": beside(recipe.figures(), measured, recipe.kind),
        "notes": [*recipe.notes, *refusals],
    }
    write_summary(folder / RESULT, result)
    write_table_page(result, folder / PAGE)
    return result


def prepare_folder(recipe: TableRecipe, folder: Path) -> None:
    """Write the recipe with all overrides into the run's folder. Raises DeltatuneError if it has another run."""
    others = {**OTHERS, RESULTS: "a single comparison", RESULT: "another table"}
    del others["study.json" if recipe.compare else RESULT]
    other = next((name for name in others if (folder / name).exists()), None)
    if other is not None:
        raise DeltatuneError(f"{folder} holds {others[other]} ({other}); choose another folder: out=FOLDER")
    make_folder(folder)
    write_file(folder / RECIPE, as_yaml(recipe))


def _dimensions(experiment: Dimension, folder: Path, watch: Watch) -> tuple[list[Figure], list[str]]:
    """Every method on every data set and model, and why some have no dimension; all are planned before the first."""
    sets, rows = data_sets(experiment.data)
    reader, hosts = PointRows(rows), LastHost()
    points = [Point(name, model) for model in experiment.model for name in sets.sources]
    folders = folder_names(points)

    def plan_at(point: Point, method: str) -> tuple[Plan, DimensionConfig]:
        config = DimensionConfig(
            method, experiment.fraction, experiment.of, experiment.largest, experiment.rates, experiment.seeds
        )
        plan = plan_search(
            reader(point.data, experiment.limit),
            config,
            model=point.model,
            settings=experiment.settings,
            task=experiment.task | rows[point.data].fields,
            head=experiment.head,
            out=folder / f"{folders[point]}-{method}",
            open_base=hosts,
        )
        return plan, config

    problems = []
    for point in points:
        for method in experiment.methods:
            try:
                plan_at(point, method)
            except DeltatuneError as error:
                problems.append(f"{point.describe(('data', 'model'))}, {method}: {error}")
    raise_all(problems)
    figures: list[Figure] = []
    refusals = []
    for point in points:
        for method in experiment.methods:
            plan, config = plan_at(point, method)
            began = time.perf_counter()
            with FolderLock(plan.out), watch.on_search(plan) as on_event:
                found = search_dimension(plan, config, on_event)
                result = summarise_search(plan, config, found, time.perf_counter() - began)
                write_summary(plan.out / "dimension.json", result)
                write_file(plan.out / "dimension.svg", draw_curve(result))
            figures += dimension_figures(result, {"data": point.data, "model": point.model}, method)
            if result["refusal"]:
                refusals.append(f"{point.describe(('data', 'model'))}, {method}: {result['refusal']}")
    return figures, refusals


def _continual(experiment: Continual, folder: Path, watch: Watch) -> list[Figure]:
    sets, rows = data_sets(experiment.data)
    reader = PointRows(rows)
    parts = read_parts({name: rows[name] for name in sets.sources}, lambda name, _: reader(name, experiment.limit))
    fields = {name: experiment.task | rows[name].fields for name in sets.sources}
    plan = continual_plan.make_plan(
        parts,
        model=experiment.model,
        methods=experiment.methods,
        modes=experiment.modes,
        seeds=experiment.seeds,
        settings=experiment.settings,
        task={"parts": fields},
        out=folder / "continual",
    )
    result = continual_run.run(plan, watch.on_training)
    asked = {repr(plan.session.fit(parse_tuning(method))): method for method in experiment.methods}
    return list(continual_figures(result, asked))


def _latencies(experiment: Latency, watch: Watch) -> list[Figure]:
    lengths = None if experiment.lengths is None else tuple(experiment.lengths)
    grid = LatencyGrid(tuple(experiment.batches), lengths, experiment.repeats, experiment.task, experiment.precision)
    benchmark = LatencyBenchmark(experiment.model, experiment.methods, grid, experiment.budget)
    return list(latency_figures(benchmark.measure(watch.on_cell)))


def _facts(experiment: FactWordings, watch: Watch) -> list[Figure]:
    figures: list[Figure] = []
    for model in experiment.model:
        study = FactStudy(
            model=model,
            data=experiment.data,
            relations=tuple(experiment.relations),
            subject=experiment.subject,
            object=experiment.object,
            limit=experiment.limit,
            wordings=tuple(experiment.wordings),
            templates=experiment.templates,
            candidates=experiment.candidates,
            top=tuple(experiment.top),
        )
        figures += fact_figures(ask_facts(study, watch.on_question), model)
    return figures


def _storage(experiment: Storage) -> list[Figure]:
    training = CountedTraining(experiment.task, experiment.classes, dtype=experiment.dtype)
    host = CountingHost(experiment.model, training)
    counts = [(method, host.count(method, experiment.budget)) for method in experiment.methods]
    stored = [(asked, count, storage(host.model, count, experiment.tasks)) for asked, count in counts]
    return list(storage_figures(stored, experiment.tasks))
