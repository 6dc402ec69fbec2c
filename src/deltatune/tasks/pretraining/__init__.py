"""Pretraining objectives, and the functions that make their inputs and targets from a given random generator."""

from __future__ import annotations

from deltatune.tasks.collator import DynamicCollator
from deltatune.tasks.pretraining.masking import (
    Entity,
    Tagger,
    add_disjoint,
    mask_tokens,
    parse_entities,
    token_units,
    units_of_spans,
    word_offsets,
    word_units,
    word_units_by_marks,
)
from deltatune.tasks.pretraining.mlm import MaskedLM, with_entities
from deltatune.tasks.pretraining.nsp import NextSentence
from deltatune.tasks.pretraining.objective import Objective
from deltatune.tasks.pretraining.objective_registry import objective_from
from deltatune.tasks.pretraining.prefix_lm import PrefixLM, causal_labels, prefix_labels, split_document, split_prefix
from deltatune.tasks.pretraining.replaced_entities import ReplacedEntities, ReplacedText, entity_names, replace_entities
from deltatune.tasks.pretraining.sentence_pairs import SentencePair, pair_documents
from deltatune.tasks.pretraining.span_corruption import (
    SpanCorruption,
    corrupt_spans,
    fill_spans,
    noise_counts,
    prepend_sentinel,
    sentinel_ids,
    span_lengths,
)

__all__ = [
    "DynamicCollator",
    "Entity",
    "MaskedLM",
    "NextSentence",
    "Objective",
    "PrefixLM",
    "ReplacedEntities",
    "ReplacedText",
    "SentencePair",
    "SpanCorruption",
    "Tagger",
    "add_disjoint",
    "causal_labels",
    "corrupt_spans",
    "entity_names",
    "fill_spans",
    "mask_tokens",
    "noise_counts",
    "objective_from",
    "pair_documents",
    "parse_entities",
    "prefix_labels",
    "prepend_sentinel",
    "replace_entities",
    "sentinel_ids",
    "span_lengths",
    "split_document",
    "split_prefix",
    "token_units",
    "units_of_spans",
    "with_entities",
    "word_offsets",
    "word_units",
    "word_units_by_marks",
]
