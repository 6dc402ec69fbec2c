"""Pretraining objectives by name: for the command line, for recipes, and for what is stored."""

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

OBJECTIVES: dict[str, type[Any]] = {
    "mlm": MaskedLM,
    "nsp": NextSentence,
    "prefix-lm": PrefixLM,
    "replaced": ReplacedEntities,
    "spans": SpanCorruption,
}
"""Objectives by the name under which they are stored."""

KINDS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "mlm": (MaskedLM, {}),
    "wwm": (MaskedLM, {"unit": "word"}),
    "entity": (MaskedLM, {"unit": "entity"}),
    "nsp": (NextSentence, {}),
    "lm": (LanguageModel, {}),
    "spans": (SpanCorruption, {}),
    "prefix-lm": (PrefixLM, {}),
    "replaced": (ReplacedEntities, {}),
}
"""Kinds to choose from, each with the fields that make it."""


def objective_from(asked: Mapping[str, Any]) -> Task:
    """The objective of `{"kind": "wwm", "max_length": 128}`. Raises DeltatuneError for unknown kinds and fields."""
    kind = str(asked.get("kind", ""))
    if kind not in KINDS:
        raise DeltatuneError(f"there is no objective {kind!r}{nearest(kind, KINDS)}; objectives: {', '.join(KINDS)}")
    made, fixed = KINDS[kind]
    given = {name: value for name, value in asked.items() if name != "kind"}
    known = [field.name for field in fields(made) if field.name not in fixed]
    raise_all([
        f"objective {kind} has no {name!r}{nearest(name, known)}; it has: {', '.join(known)}"
        for name in given
        if name not in known
    ])  # fmt: skip
    found: Task = made(**{**given, **fixed})
    return found
