"""A recipe from its first word to its last: one training, or stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deltatune.core.errors import DeltatuneError
from deltatune.store import runs
from deltatune.store.atomic import write_file
from deltatune.training.job import prepare, record_of, run
from deltatune.training.recipes.schema import Recipe
from deltatune.training.recipes.stages import run_stages
from deltatune.training.recipes.steps import RECIPE, Step, Watch, job_of, unwatched
from deltatune.training.recipes.writing import as_yaml


def folder_of(recipe: Recipe, name: str) -> Path:
    """Where a recipe's run goes."""
    return Path(recipe.out).expanduser() if recipe.out else Path("runs") / name


def run_recipe(
    recipe: Recipe, name: str, force: bool = False, watch: Watch = unwatched, again: str | None = None
) -> dict[str, Any]:
    """Do a whole recipe; returns what metrics.json or, with stages, pipeline.json holds.

    Called again it goes on, and what was finished is not done again: unless with `force`, or from stage `again` on.
    Raises DeltatuneError for everything that is wrong with the recipe, its data and its methods before anything runs.
    """
    folder = folder_of(recipe, name)
    if recipe.stages:
        return run_stages(recipe, folder, force, watch, again)
    if again is not None:
        raise DeltatuneError(f"--again {again}: this recipe has no stages; --force does it again")
    ready = prepare(job_of(recipe, recipe.model))
    assert recipe.data is not None
    record = record_of(ready, recipe.model, recipe.data.source)
    before = runs.open_run(folder, record, force, option="out=")
    write_file(folder / RECIPE, as_yaml(recipe))
    with watch(Step(name, folder, recipe.model, ready, before is not None)) as on_step:
        return run(ready, folder, record, on_step) if before is None else before
