"""Registry of pretraining objectives: by the name that the command line and recipes use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.tasks.language_modeling import LanguageModel
from deltatune.tasks.pretraining.mlm import MaskedLM
from deltatune.tasks.pretraining.nsp import NextSentence
from deltatune.tasks.pretraining.prefix_lm import PrefixLM
from deltatune.tasks.pretraining.replaced_entities import ReplacedEntities
from deltatune.tasks.pretraining.span_corruption import SpanCorruption
from deltatune.tasks.task import Task

OBJECTIVES: tuple[type[Task], ...] = (MaskedLM, NextSentence, PrefixLM, ReplacedEntities, SpanCorruption)
"""Tasks that are pretraining objectives and nothing else."""

PRESETS: dict[str, tuple[type[Task], dict[str, Any]]] = {
    "mlm": (MaskedLM, {}),
    "wwm": (MaskedLM, {"unit": "word"}),
    "entity": (MaskedLM, {"unit": "entity"}),
    "nsp": (NextSentence, {}),
    "lm": (LanguageModel, {}),
    "spans": (SpanCorruption, {}),
    "prefix-lm": (PrefixLM, {}),
    "replaced": (ReplacedEntities, {}),
}
"""Names to choose from: the task of each, and the fields that the name fixes."""


def objective_from(options: Mapping[str, Any]) -> Task:
    """The objective of `{"kind": "wwm", "max_length": 128}`. Raises DeltatuneError for unknown kinds and fields."""
    kind = str(options.get("kind", ""))
    if kind not in PRESETS:
        raise DeltatuneError(
            f"there is no objective {kind!r}{nearest(kind, PRESETS)}; objectives: {', '.join(PRESETS)}"
        )
    task, fixed = PRESETS[kind]
    given = {name: value for name, value in options.items() if name != "kind"}
    names = [field.name for field in fields(task) if field.name not in fixed]  # type: ignore[arg-type]
    raise_all([
        f"objective {kind} has no {name!r}{nearest(name, names)}; it has: {', '.join(names)}"
        for name in given
        if name not in names
    ])  # fmt: skip
    return task(**{**given, **fixed})
