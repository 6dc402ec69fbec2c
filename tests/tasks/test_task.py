"""Declarations of every task: stored names, label kinds, fields that may change after training."""

import dataclasses
from typing import ClassVar

import pytest
import torch

from deltatune.core.errors import DeltatuneError
from deltatune.tasks import task_from_json
from deltatune.tasks.classification import Classify
from deltatune.tasks.task import LanguageModelTask, Task
from deltatune.tasks.task_registry import DATA_TASKS, TASKS

MADE = {
    "classify": {"labels": ("a", "b")},
    "many": {"labels": ("a", "b")},
    "tag": {"tags": ("O", "B-X")},
    "label-words": {"labels": ("a", "b"), "template": "{text} {mask}"},
    "nearest-demonstrations": {
        "labels": ("a", "b"),
        "template": "{text} {mask}",
        "shots": 1,
        "pool": (("x a", "a", "x"), ("y b", "b", "y")),
    },
    "mixture": {"parts": {"one": Classify(labels=("a", "b")), "two": Classify(labels=("c", "d"))}},
}


@pytest.fixture(params=TASKS)
def task(request):
    return TASKS[request.param](**MADE.get(request.param, {}))


def test_a_task_declares_what_training_and_prediction_ask_of_it(task):
    assert TASKS[task.name] is type(task)
    assert task.metric in task.metrics
    assert task.answers in ("row", "token", "text", "likelihood", "noise")
    assert task.loads in ("row", "text", "mask", "pairs", "words", "pipeline")
    assert task.families
    assert isinstance(task.text, tuple)
    assert isinstance(task.label, str)
    assert isinstance(task.labels, tuple)
    assert task.describe()
    names = [field.name for field in dataclasses.fields(task)]
    assert set(task.inference_fields) <= set(names)
    assert task_from_json(task.to_json()) == task


def test_only_tasks_with_a_head_of_their_own_have_one(task):
    uses_language_model = task.answers in ("text", "likelihood")
    assert isinstance(task, LanguageModelTask) == uses_language_model
    if uses_language_model:
        assert task.make_head(None) is None


def test_a_static_task_draws_the_row_itself(task):
    row = {"input_ids": [1, 2], "attention_mask": [1, 1]}
    if not task.dynamic:
        assert task.draw(row, torch.Generator()) is row


def test_every_kind_of_label_has_its_task():
    for kind, task in DATA_TASKS.items():
        options = {"labels": ("a", "b")} if kind in ("classes", "many") else MADE.get(task.name, {})
        made = task(**({} if kind == "number" else options))
        assert made.label_kind == kind


def test_a_task_without_its_methods_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Empty(Task):
        metric: str = ""

    with pytest.raises(TypeError, match=r"abstract.*encode"):
        Empty()


def test_a_task_stored_before_a_field_was_added_keeps_its_meaning():
    @dataclasses.dataclass(frozen=True)
    class Longer(Classify):
        added_fields: ClassVar = {**Classify.added_fields, "margin": 0.0}
        margin: float = 0.5

    stored = Longer(labels=("a", "b")).to_json()
    assert Longer.from_json(stored).margin == 0.5
    del stored["margin"]
    assert Longer.from_json(stored).margin == 0.0  # what it was trained with, not today's default
    del stored["max_length"]
    with pytest.raises(DeltatuneError, match="lacks 'max_length'"):
        Longer.from_json(stored)


def test_fields_that_were_added_exist(task):
    assert set(task.added_fields) <= {field.name for field in dataclasses.fields(task)}
