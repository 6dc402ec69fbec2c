"""Tasks: what is asked of a model. Text to tokens, logits to a loss, logits to answers and scores."""

from __future__ import annotations

from typing import Any

from deltatune.core.errors import DeltatuneError, nearest
from deltatune.tasks.batches import Collate, collate_for
from deltatune.tasks.classify import Classify
from deltatune.tasks.heads import Head, HeadConfig, head_from_json
from deltatune.tasks.mixture import Mixture
from deltatune.tasks.task import Encoded, Row, Task, TokenRow
from deltatune.tasks.tokens import longest_input, padding_id, tokenizer_fingerprint

TASKS: dict[str, type[Classify | Mixture]] = {"classify": Classify, "mixture": Mixture}
"""Kinds of task by the name under which an adapter folder stores them."""


def task_from_json(data: dict[str, Any]) -> Task:
    """Read a stored task. Raises DeltatuneError for an unknown kind and for missing or unknown fields."""
    kind = str(data.get("task"))
    if kind not in TASKS:
        raise DeltatuneError(f"unknown task {kind!r}{nearest(kind, TASKS)}; tasks: {', '.join(TASKS)}")
    return TASKS[kind].from_json(data)


__all__ = [
    "Classify",
    "Collate",
    "Encoded",
    "Head",
    "HeadConfig",
    "Mixture",
    "Row",
    "Task",
    "TokenRow",
    "collate_for",
    "head_from_json",
    "longest_input",
    "padding_id",
    "task_from_json",
    "tokenizer_fingerprint",
]
