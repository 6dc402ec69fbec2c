"""One step of a recipe: what it asks of training, and what whoever watches is told of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from deltatune.training.job import Job, Prepared
from deltatune.training.recipes.checking import Looked, look
from deltatune.training.recipes.schema import Run
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
