"""What can be found wrong with a recipe before anything runs: rows, methods, tasks, and stages far down the list."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from deltatune.core.budget import fit_budget
from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.core.host import Host
from deltatune.core.merging import obstacles
from deltatune.core.registry import parse
from deltatune.data import Data, read
from deltatune.models.loading import empty_backbone
from deltatune.tasks import HeadConfig, Task
from deltatune.tasks.auto_task import check_known
from deltatune.tasks.pretraining import objective_from
from deltatune.tasks.task_registry import DATA_TASKS
from deltatune.training.recipes.schema import Recipe, Rows, Run, Stage

NAME = "adapter"


@dataclass(frozen=True)
class Looked:
    """The rows of a part, read and checked, and its objective if it has one."""

    data: Data
    objective: Task | None = None

    @property
    def answers(self) -> str:
        """What the model has to give."""
        return str((self.objective or DATA_TASKS[self.data.kind]).answers)

    @property
    def loads(self) -> Any:
        """As what the model is loaded: what it has to give, unless an objective needs more."""
        return (self.objective or DATA_TASKS[self.data.kind]).loads


def rows_of(rows: Rows, raw: bool = False) -> Data:
    """The rows that a recipe names; `raw`: its texts alone, whatever labels stand beside them."""
    return read(
        rows.source,
        task="lm" if raw else rows.task,
        text=rows.text,
        label=rows.label,
        validation=rows.validation,
        test=rows.test,
        limit=rows.limit,
    )


def look(part: Run) -> Looked:
    """Read what a part trains on, and check what it says of task, head and method."""
    assert part.data is not None  # the schema sees to it
    parse(part.method)
    data = rows_of(part.data, raw=part.objective is not None or getattr(part, "vocabulary", None) is not None)
    objective = None if part.objective is None else objective_from({"text": list(data.text), **part.objective})
    found = Looked(data, objective)
    if objective is None:
        check_known(DATA_TASKS[found.data.kind], part.task)
    if part.head:
        _check_head(part, found)
    return found


def _check_head(part: Run, found: Looked) -> None:
    if found.answers != "row":
        raise DeltatuneError(f"a task of kind {found.data.kind} has no head to choose: leave head out")
    known = [field.name for field in fields(HeadConfig) if field.name not in ("outputs", "width")]
    raise_all([
        f"a head has no {name!r}{nearest(name, known)}; it has: {', '.join(known)}"
        for name in part.head
        if name not in known
    ])  # fmt: skip


def look_at_stages(recipe: Recipe) -> dict[str, Looked]:
    """What each stage trains on, by its name, after trying every stage's method on the model's empty shape.

    Raises DeltatuneError with what is wrong with any of them.
    """
    found, problems = {}, []
    for stage in recipe.stages:
        try:
            found[stage.name] = look(stage)
            _check_merges(stage, found[stage.name])
            _check_method(stage, found[stage.name], recipe.model)
        except DeltatuneError as error:
            problems.append(f"stage {stage.name}: {error}")
    known = [(stage.name, stage.vocabulary.known) for stage in recipe.stages if stage.vocabulary]
    for name, rows in [("measure", recipe.measure), *known]:
        try:
            if rows is not None:
                rows_of(rows, raw=True)
        except DeltatuneError as error:
            problems.append(f"{name}: {error}")
    raise_all(problems)
    return found


def _check_merges(stage: Stage, found: Looked) -> None:
    if stage.vocabulary is None and stage.merge and found.answers in ("row", "token"):
        raise DeltatuneError(
            f"a task of kind {found.data.kind} trains a head, which is no part of a model, so it cannot be merged; "
            "say merge: false in the last stage"
        )


def _check_method(stage: Stage, found: Looked, model: str) -> None:
    """Attach a stage's method to the model's shape. New words change the model's vocabulary, but no name in it."""
    if stage.vocabulary is not None:
        return
    host = Host(empty_backbone(model, found.loads))
    method = parse(stage.method)
    if stage.budget is not None:
        method = fit_budget(method, host.sites, stage.budget)
    try:
        host.attach(NAME, method, head=False)
    except NotImplementedError:  # it starts from the weights, and there are none: its turn will come
        return
    if stage.merge:
        check_merges(stage.method, obstacles(host.adapters[NAME]))


def check_merges(method: str, found: list[str]) -> None:
    """Raise DeltatuneError if something keeps a method from being written into the model."""
    raise_all([f"{method} cannot be merged, because {one}; choose another or say merge: false" for one in found])
