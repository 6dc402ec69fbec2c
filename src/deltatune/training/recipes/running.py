"""A recipe, or one stage of it, as a training run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from deltatune.data import Data, read
from deltatune.store import runs
from deltatune.store.atomic import write_file
from deltatune.training.job import Job, Prepared, prepare, record_of, run
from deltatune.training.recipes.reading import as_yaml
from deltatune.training.recipes.schema import Recipe, Run, Source
from deltatune.training.trainer import OnStep

METHOD, RECIPE = "LoRA(r=8)", "recipe.yaml"

Watch = Callable[[str, Prepared], AbstractContextManager[OnStep | None]]
"""Given a run's name and what it will do, a context that yields what is called after each step."""


def unwatched(name: str, ready: Prepared) -> AbstractContextManager[OnStep | None]:
    """Nothing is shown."""
    return nullcontext()


def rows_of(source: Source, raw: bool = False) -> Data:
    """The rows that a recipe names; `raw`: its texts alone, whatever labels stand beside them."""
    return read(
        source.source,
        task="lm" if raw else source.task,
        text=source.text,
        label=None if raw else source.label,
        validation=source.validation,
        test=source.test,
        limit=source.limit,
    )


def job_of(part: Run, model: str) -> Job:
    """What a recipe or a stage asks for."""
    assert part.data is not None  # the schema sees to it
    objective = None
    if part.objective is not None:
        from deltatune.tasks.objectives import objective_from

        objective = objective_from(part.objective)
    return Job(
        model,
        rows_of(part.data, raw=objective is not None),
        part.method or METHOD,
        part.budget,
        part.task,
        part.head,
        part.settings,
        objective,
    )


def folder_of(recipe: Recipe, name: str) -> Path:
    """Where a recipe's run goes."""
    return Path(recipe.out) if recipe.out else Path("runs") / name


def run_part(
    part: Run,
    model: str,
    folder: Path,
    name: str,
    force: bool = False,
    watch: Watch = unwatched,
    accept: Callable[[Prepared], None] | None = None,
) -> dict[str, Any]:
    """Train what a recipe or a stage asks for; a run that was finished before is not done again.

    `accept` may raise before anything is trained.
    """
    ready = prepare(job_of(part, model))
    if accept is not None:
        accept(ready)
    assert part.data is not None
    record = record_of(ready, model, part.data.source)
    before = runs.open_run(folder, record, force)
    write_file(folder / RECIPE, as_yaml(part))
    with watch(name, ready) as on_step:
        return run(ready, folder, record, on_step) if before is None else before


def run_recipe(recipe: Recipe, name: str, force: bool = False, watch: Watch = unwatched) -> dict[str, Any]:
    """Do a whole recipe; returns what metrics.json or, with stages, pipeline.json holds."""
    from deltatune.training.recipes.stages import run_stages

    folder = folder_of(recipe, name)
    if recipe.stages:
        return run_stages(recipe, folder, force, watch)
    return run_part(recipe, recipe.model, folder, name, force, watch)
