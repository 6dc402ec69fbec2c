"""Pretraining objectives: what is hidden of a text and asked for, drawn from generators that are handed in."""

from __future__ import annotations

from deltatune.tasks.collator import DynamicCollator
from deltatune.tasks.pretraining.entity_spans import (
    Entity,
    Replaced,
    Tagger,
    entities_of,
    names_by_kind,
    replace_entities,
)
from deltatune.tasks.pretraining.masking import (
    mask_tokens,
    places_of,
    singles,
    units_at,
    with_rest,
    words_by_marks,
    words_of,
)
from deltatune.tasks.pretraining.mlm import MaskedLM, with_entities
from deltatune.tasks.pretraining.nsp import NextSentence, Pair, pair_documents
from deltatune.tasks.pretraining.objective import Objective
from deltatune.tasks.pretraining.objective_registry import objective_from
from deltatune.tasks.pretraining.prefix_lm import PrefixLM, causal_labels, pieces, prefix_labels, split_prefix
from deltatune.tasks.pretraining.replaced_entities import ReplacedEntities
from deltatune.tasks.pretraining.span_corruption import (
    SpanCorruption,
    after_sentinel,
    corrupt_spans,
    fill_spans,
    noise_counts,
    sentinels_of,
    span_lengths,
)

__all__ = [
    "DynamicCollator",
    "Entity",
    "MaskedLM",
    "NextSentence",
    "Objective",
    "Pair",
    "PrefixLM",
    "Replaced",
    "ReplacedEntities",
    "SpanCorruption",
    "Tagger",
    "after_sentinel",
    "causal_labels",
    "corrupt_spans",
    "entities_of",
    "fill_spans",
    "mask_tokens",
    "names_by_kind",
    "noise_counts",
    "objective_from",
    "pair_documents",
    "pieces",
    "places_of",
    "prefix_labels",
    "replace_entities",
    "sentinels_of",
    "singles",
    "span_lengths",
    "split_prefix",
    "units_at",
    "with_entities",
    "with_rest",
    "words_by_marks",
    "words_of",
]
