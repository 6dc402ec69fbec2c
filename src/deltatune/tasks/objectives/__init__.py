"""Pretraining objectives: what is hidden of a text and asked for, drawn from generators that are handed in."""

from __future__ import annotations

from deltatune.tasks.objectives.collator import Collator
from deltatune.tasks.objectives.entities import (
    Entity,
    Replaced,
    Tagger,
    entities_of,
    names_by_kind,
    replace_entities,
)
from deltatune.tasks.objectives.kinds import objective_from
from deltatune.tasks.objectives.masked import MaskedLM, with_entities
from deltatune.tasks.objectives.masking import mask_tokens
from deltatune.tasks.objectives.objective import Objective
from deltatune.tasks.objectives.pairs import Pair, pair_documents
from deltatune.tasks.objectives.prefix_lm import PrefixLM
from deltatune.tasks.objectives.prefixes import causal_labels, pieces, prefix_labels, split_prefix
from deltatune.tasks.objectives.replaced import ReplacedEntities
from deltatune.tasks.objectives.sentences import NextSentence
from deltatune.tasks.objectives.span_corruption import SpanCorruption
from deltatune.tasks.objectives.spans import (
    after_sentinel,
    corrupt_spans,
    fill_spans,
    noise_counts,
    sentinels_of,
    span_lengths,
)
from deltatune.tasks.objectives.units import places_of, singles, units_at, with_rest, words_by_marks, words_of

__all__ = [
    "Collator",
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
