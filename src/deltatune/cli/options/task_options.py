"""Options of single tasks: the positive class, marked entities, and the model of a metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from deltatune.cli.options.shared_options import DATA, TASK_NAMES, option, set_values
from deltatune.core.errors import DeltatuneError

if TYPE_CHECKING:
    from deltatune.data import Data as Dataset
    from deltatune.tasks import Task

Positive = Annotated[
    str | None,
    option(
        "--positive",
        panel=DATA,
        metavar="CLASS",
        help="The class that f1, precision and recall are of. Default for two classes: the one that its name says (1, "
        "yes, positive, equivalent, entailment, ...), else the last.",
    ),
]
MarkedEntities = Annotated[
    list[str] | None,
    option(
        "--mark",
        panel=DATA,
        metavar="COLUMN",
        help="Relation extraction: mark the entity of this column in the text; give it twice for head and tail. "
        "COLUMN:TYPE_COLUMN also names its type.",
    ),
]
MetricModel = Annotated[
    str | None,
    option(
        "--metric-model",
        panel=DATA,
        metavar="MODEL",
        help="The model of the metrics bertscore and mover (an encoder) and bleurt: a folder, or a name on the hub.",
    ),
]


def class_fields(data: Dataset, positive: str | None, mark: Sequence[str] | None = None) -> dict[str, Any]:
    """The fields of a classification that options set. Raises DeltatuneError if the data are for another task."""
    if mark and data.task not in ("classify", "regression"):
        raise DeltatuneError(f"--mark is for classification; this task is {TASK_NAMES.get(data.task, data.task)}")
    if positive is not None and data.kind != "classes":
        task = "several labels a row" if data.kind == "many" else TASK_NAMES.get(data.task, data.task)
        raise DeltatuneError(f"--positive {positive} is for one class a row; this task is {task}")
    return set_values({"positive": positive, "mark": tuple(mark) if mark else None})


def with_marked_columns(data: Dataset, task: Task) -> Dataset:
    """The data with the columns of marked entities among its texts, as text: another entity is another input."""
    columns = [name.partition(":")[0] for name in getattr(task, "mark", ())]
    if not columns:
        return data
    data = replace(data, text=(*data.text, *(name for name in columns if name not in data.text)))
    splits = {
        split: [{**row, **{name: str(row.get(name, "")) for name in columns}} for row in rows]
        for split, rows in data.splits().items()
    }
    train, validation, test = (splits.pop(name) for name in ("train", "validation", "test"))
    return replace(data, train=train, validation=validation, test=test, more_tests=splits)
