"""Checks of a recipe before anything runs: its rows, methods and tasks, also those of the last stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from deltatune.core.budget import fit_budget
from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.core.host import Host
from deltatune.core.memory import check_memory
from deltatune.core.merging import merge_obstacles
from deltatune.core.registry import parse_tuning
from deltatune.data import Data
from deltatune.data.mixture_data import read_parts
from deltatune.data.read_data import read_source
from deltatune.models.hardware import best_device
from deltatune.models.loading import empty_backbone
from deltatune.models.quantization.quantize_model import quantize_
from deltatune.tasks import HeadConfig, Task
from deltatune.tasks.auto_task import check_task_fields, task_classes
from deltatune.tasks.pretraining import objective_from
from deltatune.training.continued.continued_training import Start, read_rows, read_start
from deltatune.training.recipes.schema import Parts, Recipe, Rows, Stage, Training
from deltatune.training.session import NAME


@dataclass(frozen=True)
class TrainingData:
    """The rows of one training, read and checked."""

    data: Data
    objective: Task | None = None
    """Its pretraining objective, if it has one."""
    start: Start | None = None
    """The adapter that it goes on with, if it does."""

    fields: Mapping[str, Any] = field(default_factory=dict)
    """The fields of its task that are set."""

    @property
    def kinds(self) -> Sequence[Task | type[Task]]:
        """Its objective, the class of its task, or those of a mixture's parts."""
        return [self.objective] if self.objective is not None else task_classes(self.data, self.fields)

    @property
    def answers(self) -> str:
        """The kind of output that the task needs from the model: "row" where a head can be on it."""
        answers = ["text" if kind.loads == "words" else str(kind.answers) for kind in self.kinds]
        return "row" if "row" in answers else answers[0]

    @property
    def loads(self) -> Any:
        """The kind of model to load, as `load_backbone` takes it."""
        return self.kinds[0].loads


def load_rows(rows: Rows, raw: bool = False, start: Start | None = None) -> Data:
    """The rows that a recipe names; with `raw` only their texts, without labels.

    They are read as the task of the adapter `start` reads them, if there is one.
    """
    if start is not None:
        given = {name: getattr(rows, name) for name in Rows.model_fields if name != "source"}
        return read_rows(start, rows.source, **given)
    return read_source(
        rows.source,
        task="lm" if raw else rows.task,
        text=rows.text,
        label=rows.label,
        validation=rows.validation,
        test=rows.test,
        limit=rows.limit,
    )


ReadRows = Callable[[Rows, bool, Start | None], Data]
"""What reads the rows that a recipe names, as `load_rows` does."""


def load_training_data(training: Training, load: ReadRows = load_rows) -> TrainingData:
    """Read the rows of a training, and check its task, head and method."""
    if training.mixture is not None:
        return _load_parts(training, training.mixture, load)
    assert training.data is not None  # the schema requires it
    start = read_start(training.start) if training.start else None
    parse_tuning(training.method)
    raw = training.objective is not None or getattr(training, "vocabulary", None) is not None
    data = load(training.data, raw, start)
    objective = None
    if training.objective is not None:
        objective = objective_from({"text": list(data.text), **training.objective})
    if objective is None:
        check_task_fields(data, training.task)
    checked = TrainingData(data, objective, start, training.task)
    if training.head:
        _check_head(training, checked)
    return checked


def _load_parts(training: Training, mixture: Parts, load: ReadRows) -> TrainingData:
    """Read the rows of a mixture's parts, and check the fields of their tasks."""
    parse_tuning(training.method)
    start = read_start(training.start) if training.start else None

    def rows_of(name: str, rows: Rows) -> Data:
        return load(rows, False, None if start is None else start.part(name))

    checked = TrainingData(read_parts(mixture.parts, rows_of), start=start, fields=training.task_fields)
    if start is None:
        check_task_fields(checked.data, training.task_fields)
    if training.head:
        _check_head(training, checked)
    return checked


def _check_head(training: Training, checked: TrainingData) -> None:
    if checked.answers != "row":
        raise DeltatuneError(f"head options do not apply to a task of kind {checked.data.kind}: leave head out")
    names = [each.name for each in fields(HeadConfig) if each.name not in ("outputs", "width")]
    raise_all([
        f"a head has no option {name!r}{nearest(name, names)}; it has: {', '.join(names)}"
        for name in training.head
        if name not in names
    ])  # fmt: skip


def check_stages(recipe: Recipe) -> dict[str, TrainingData]:
    """The training data of each stage by its name; each stage's method is tried on the model's empty shape.

    Raises DeltatuneError with the problems of all stages.
    """
    checked, problems = {}, []
    for stage in recipe.stages:
        try:
            checked[stage.name] = load_training_data(stage)
            _check_head_stays(stage, checked[stage.name])
            _check_method(stage, checked[stage.name], recipe.model, recipe.quantize)
        except DeltatuneError as error:
            problems.append(f"stages.{stage.name}: {error}")
    known_texts = [(stage.name, stage.vocabulary.known) for stage in recipe.stages if stage.vocabulary]
    for name, rows in [("measure", recipe.measure), *known_texts]:
        try:
            if rows is not None:
                load_rows(rows, raw=True)
        except DeltatuneError as error:
            problems.append(f"{name}: {error}")
    raise_all(problems)
    return checked


def _check_head_stays(stage: Stage, checked: TrainingData) -> None:
    """Raise DeltatuneError for a stage that would lose its classification head in the merge."""
    if stage.vocabulary is None and stage.merge and checked.answers in ("row", "token"):
        raise DeltatuneError(
            f"a task of kind {checked.data.kind} trains a classification head, which cannot be merged into the base "
            "model; set merge: false in the last stage"
        )


def _check_method(stage: Stage, checked: TrainingData, model: str, quantize: str | None) -> None:
    """Attach a stage's method to the model's shape; new tokens change the size of the vocabulary, but no site."""
    if stage.vocabulary is not None or stage.start is not None:
        return
    backbone = empty_backbone(model, checked.loads)
    quantize_(backbone, quantize or "none")
    host = Host(backbone)
    method = parse_tuning(stage.method)
    if stage.budget is not None:
        method = fit_budget(method, host.sites, stage.budget)
    check_memory(method, host.sites, best_device())
    try:
        host.attach(NAME, method, head=False)
    except NotImplementedError:  # it initialises from the weights, which an empty model lacks; checked when it trains
        return
    if stage.merge:
        check_merge(stage.method, merge_obstacles(host.adapters[NAME]))


def check_merge(method: str, reasons: list[str]) -> None:
    """Raise DeltatuneError if there are reasons why a method cannot be merged."""
    raise_all([f"{method} cannot be merged, because {why}; use another method or set merge: false" for why in reasons])
