"""Mutated JSON of stored tasks: a plain error, or a task that says what it was made of."""

import json
from typing import Any

import pytest

from deltatune.core.errors import DeltatuneError
from deltatune.core.input_validation.strict_json import loads
from deltatune.tasks import Classify, ExtractiveQA, Generate, LanguageModel, Mixture, MultiLabel, Tag
from deltatune.tasks.reasoning import Reason
from deltatune.tasks.task_registry import TASKS, task_from_json
from support.fuzz import mutations, outcome

STORED = (
    Classify(text=("a", "b"), label="c", labels=("no", "yes"), metric="f1"),
    Classify(text=("a",), label="c", metric="pearson", center=2.5, scale=1.5),
    MultiLabel(text=("a",), label="c", labels=("x", "y", "z")),
    Tag(text=("tokens",), label="tags", tags=("B-PER", "I-PER", "O")),
    ExtractiveQA(),
    Generate(text=("a",), label="b", prompt="Say {a}:", beams=2),
    Reason(text=("a",), label="b", demonstrations=("Q: x\nA: y. The answer is 1.",), samples=3, answer="choice"),
    LanguageModel(text=("a",)),
    TASKS["fact"](candidates=(3, 5), over="candidates", top=3),
    Mixture({"one": Classify(labels=("no", "yes")), "two": Generate()}),
    *(TASKS[name]() for name in ("mlm", "nsp", "prefix-lm", "replaced", "spans")),
)


@pytest.mark.parametrize("count", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_mutated_tasks_are_refused_or_say_what_they_are(count: int) -> None:
    for seed, task in enumerate(STORED):
        stored = json.dumps(task.to_json()).encode()
        for name, content in mutations(stored, seed, 1 + count // len(STORED)):

            def read(content: bytes = content) -> Any:
                return task_from_json(loads(content, "task"))

            found = outcome(read, f"{name}: {content[:300]!r}", 5)
            if not isinstance(found, DeltatuneError) and found != task:
                assert found.to_json() != task.to_json(), name
                assert task_from_json(found.to_json()).to_json() == found.to_json(), name
