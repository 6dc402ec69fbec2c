"""Tasks: what is asked of a model. Text to tokens, logits to a loss, logits to answers and scores."""

from __future__ import annotations

from typing import Any

from deltatune.core.errors import DeltatuneError, nearest
from deltatune.tasks.classification import Classify
from deltatune.tasks.collator import Collate, collate_for
from deltatune.tasks.extractive_qa import Span
from deltatune.tasks.generation import Generate
from deltatune.tasks.heads import Head, HeadConfig, head_from_json
from deltatune.tasks.language_modeling import LanguageModel
from deltatune.tasks.mixture import Mixture
from deltatune.tasks.multilabel import ManyLabels
from deltatune.tasks.pretraining.objective_registry import OBJECTIVES
from deltatune.tasks.tagging import Tag
from deltatune.tasks.task import Encoded, Row, Task, TokenRow
from deltatune.tasks.tokenization import longest_input, padding_id, tokenizer_fingerprint

TASKS: dict[str, Any] = {
    "classify": Classify,
    "generate": Generate,
    "lm": LanguageModel,
    "many": ManyLabels,
    "mixture": Mixture,
    "span": Span,
    "tag": Tag,
    **OBJECTIVES,
}
"""Kinds of task by the name under which an adapter folder stores them."""


def task_from_json(data: dict[str, Any]) -> Task:
    """Read a stored task. Raises DeltatuneError for an unknown kind and for missing or unknown fields."""
    kind = str(data.get("task"))
    if kind not in TASKS:
        raise DeltatuneError(f"unknown task {kind!r}{nearest(kind, TASKS)}; tasks: {', '.join(TASKS)}")
    found: Task = TASKS[kind].from_json(data)
    return found


__all__ = [
    "Classify",
    "Collate",
    "Encoded",
    "Generate",
    "Head",
    "HeadConfig",
    "LanguageModel",
    "ManyLabels",
    "Mixture",
    "Row",
    "Span",
    "Tag",
    "Task",
    "TokenRow",
    "collate_for",
    "head_from_json",
    "longest_input",
    "padding_id",
    "task_from_json",
    "tokenizer_fingerprint",
]
