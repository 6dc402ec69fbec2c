"""Registry of all tasks: by the name under which an adapter stores them, and by the kind of data they are for."""

from __future__ import annotations

from typing import Any

from deltatune.core.errors import DeltatuneError, nearest
from deltatune.core.input_validation.field_validation import shortened
from deltatune.data import LabelKind
from deltatune.tasks.classification import Classify
from deltatune.tasks.diffusion.text_to_image import TextToImage
from deltatune.tasks.extractive_qa import ExtractiveQA
from deltatune.tasks.fact_completion import FactCompletion
from deltatune.tasks.generation import Generate
from deltatune.tasks.in_context_generation import GenerateInContext
from deltatune.tasks.label_words.label_words import LabelWords
from deltatune.tasks.label_words.nearest_demonstrations import NearestDemonstrations
from deltatune.tasks.language_modeling import LanguageModel
from deltatune.tasks.mixture import Mixture
from deltatune.tasks.multilabel import MultiLabel
from deltatune.tasks.preferences.preference import Prefer
from deltatune.tasks.pretraining.objective_registry import OBJECTIVES
from deltatune.tasks.reasoning import Reason
from deltatune.tasks.tagging import Tag
from deltatune.tasks.task import Task

DATA_TASKS: dict[LabelKind, type[Task]] = {
    "classes": Classify,
    "number": Classify,
    "many": MultiLabel,
    "tags": Tag,
    "span": ExtractiveQA,
    "text": Generate,
    "raw": LanguageModel,
    "pairs": Prefer,
    "image": TextToImage,
}
"""The task of each kind of data."""

_ALL: tuple[type[Task], ...] = (
    *DATA_TASKS.values(),
    LabelWords,
    NearestDemonstrations,
    FactCompletion,
    Mixture,
    Reason,
    GenerateInContext,
    *OBJECTIVES,
)
TASKS: dict[str, type[Task]] = {task.name: task for task in _ALL}
"""Tasks by the name under which an adapter folder stores them."""


def task_from_json(data: dict[str, Any]) -> Task:
    """Read a stored task. Raises DeltatuneError for an unknown task and for missing or unknown fields."""
    if not isinstance(data, dict):
        raise DeltatuneError(f"the stored task is {shortened(data)}; it must be an object with the fields of a task")
    name = shortened(data.get("task"), quoted=False)
    if name not in TASKS:
        raise DeltatuneError(f"unknown task {name!r}{nearest(name, TASKS)}; tasks: {', '.join(sorted(TASKS))}")
    return TASKS[name].from_json(data)
