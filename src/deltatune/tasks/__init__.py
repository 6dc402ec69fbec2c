"""Tasks: rows to tokens, logits to a loss, logits to answers and scores.

Names are imported when first used, so that reports can read facts about metrics without importing torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deltatune.tasks.classification import Classify as Classify
    from deltatune.tasks.collator import Collate as Collate
    from deltatune.tasks.collator import collate_for as collate_for
    from deltatune.tasks.extractive_qa import Span as Span
    from deltatune.tasks.generation import Generate as Generate
    from deltatune.tasks.heads import Head as Head
    from deltatune.tasks.heads import HeadConfig as HeadConfig
    from deltatune.tasks.heads import head_from_json as head_from_json
    from deltatune.tasks.language_modeling import LanguageModel as LanguageModel
    from deltatune.tasks.mixture import Mixture as Mixture
    from deltatune.tasks.multilabel import ManyLabels as ManyLabels
    from deltatune.tasks.tagging import Tag as Tag
    from deltatune.tasks.task import Encoded as Encoded
    from deltatune.tasks.task import LanguageModelTask as LanguageModelTask
    from deltatune.tasks.task import Row as Row
    from deltatune.tasks.task import Task as Task
    from deltatune.tasks.task import TokenRow as TokenRow
    from deltatune.tasks.task_registry import task_from_json as task_from_json
    from deltatune.tasks.tokenization import longest_input as longest_input
    from deltatune.tasks.tokenization import padding_id as padding_id
    from deltatune.tasks.tokenization import tokenizer_fingerprint as tokenizer_fingerprint

_MODULES = {
    "Classify": "classification",
    "Collate": "collator",
    "Encoded": "task",
    "Generate": "generation",
    "Head": "heads",
    "HeadConfig": "heads",
    "LanguageModel": "language_modeling",
    "LanguageModelTask": "task",
    "ManyLabels": "multilabel",
    "Mixture": "mixture",
    "Row": "task",
    "Span": "extractive_qa",
    "Tag": "tagging",
    "Task": "task",
    "TokenRow": "task",
    "collate_for": "collator",
    "head_from_json": "heads",
    "longest_input": "tokenization",
    "padding_id": "tokenization",
    "task_from_json": "task_registry",
    "tokenizer_fingerprint": "tokenization",
}
"""The module of each public name."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


__all__ = [
    "Classify",
    "Collate",
    "Encoded",
    "Generate",
    "Head",
    "HeadConfig",
    "LanguageModel",
    "LanguageModelTask",
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
