"""A recipe, or one stage of it, as a training run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltatune.core.errors import DeltatuneError
from deltatune.store import runs
from deltatune.store.atomic import write_file
from deltatune.training.job import Job, Prepared, prepare, record_of, run
from deltatune.training.recipes.checking import Looked, look
from deltatune.training.recipes.schema import Recipe, Run
from deltatune.training.recipes.writing import as_yaml
from deltatune.training.trainer import OnStep

RECIPE = "recipe.yaml"


@dataclass(frozen=True)
class Step:
    """What is about to be done."""

    name: str
    folder: Path
    model: str
    """What it starts from."""
    ready: Prepared | None = None
    """The training; None where nothing is trained, and for a stage that was finished before."""
    finished: bool = False
    """Whether it was done before, and is not done again."""
    number: int = 0
    """Which of the stages it is, from 1; 0 without stages."""
    of: int = 0
    """How many stages there are."""


Watch = Callable[[Step], AbstractContextManager[OnStep | None]]
"""A context for a step, which yields what is called after each step of its training."""


def unwatched(step: Step) -> AbstractContextManager[OnStep | None]:
    """Nothing is shown."""
    return nullcontext()


def job_of(part: Run, model: str, found: Looked | None = None) -> Job:
    """What a recipe or a stage asks for."""
    found = found or look(part)
    return Job(model, found.data, part.method, part.budget, part.task, part.head, part.settings, found.objective)


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
    from deltatune.training.recipes.stages import run_stages

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
