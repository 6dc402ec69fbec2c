"""Scores of tagged words: of the entities that tags with B- and I- mark, or of the single tags."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.tasks.metrics.corpus_score import AdditiveScore, CorpusScore, Floats, check_pairs, ratio, ratio_score

ENTITY_TAG = re.compile(r"O|[BIESLU](-.+)?", re.DOTALL)
"""Outside, begin, inside, end (or last), single (or unit): IOB1, IOB2, IOBES and BILOU."""
SEQEVAL_PREFIX = {"L": "E", "U": "S"}
"""BILOU's prefixes that seqeval calls otherwise."""
ENTITY_METRICS = ("f1", "precision", "recall", "f1_macro", "accuracy")
TAG_METRICS = ("accuracy", "f1_macro", "f1_micro")


def is_entity_scheme(tags: Iterable[str]) -> bool:
    """Whether tags mark entities: each is "O" or starts with B, I, E, S (L, U), and there is an "O" or a B or I.

    "O" alone is not a scheme: it does not tell whether entities or words are tagged.
    """
    seen = set(tags)
    prefixes = {tag[0] for tag in seen if ENTITY_TAG.fullmatch(tag)}
    typed = any("-" in tag for tag in seen)
    # Single letters may be any tags; a scheme without types has "O" among them.
    enough = bool(prefixes & set("BIS")) or "U" in prefixes if typed else "O" in seen and bool(prefixes & set("BI"))
    return enough and all(ENTITY_TAG.fullmatch(tag) for tag in seen)


def tag_scores(
    predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]], entities: bool | None = None
) -> dict[str, CorpusScore]:
    """Scores of the tags (N lists) of N texts.

    entities: whether the tags mark entities; by default inferred from the tags (`is_entity_scheme`).
    For entities: f1, precision, recall (micro averages), f1_macro (mean over types) and accuracy (per word), equal to
    seqeval's in its default mode. Else: accuracy, f1_macro (mean over the tags seen) and f1_micro (per word).
    Raises DeltatuneError naming the rows with another number of predicted than of true tags.
    """
    check_pairs(predictions, references)
    pairs = [(list(predicted), list(true)) for predicted, true in zip(predictions, references, strict=True)]
    unequal = [(i, predicted, true) for i, (predicted, true) in enumerate(pairs) if len(predicted) != len(true)]
    raise_all([f"row {i}: {len(predicted)} predicted tags for {len(true)}" for i, predicted, true in unequal[:10]])
    if entities is None:
        entities = is_entity_scheme(tag for pair in pairs for tags in pair for tag in tags)
    right = [sum(a == b for a, b in zip(predicted, true, strict=True)) for predicted, true in pairs]
    accuracy = ratio_score(right, [len(true) for _, true in pairs])
    if entities:
        return _entity_scores(pairs) | {"accuracy": accuracy}
    numbered = [(set(enumerate(predicted)), set(enumerate(true))) for predicted, true in pairs]
    return {"accuracy": accuracy, "f1_macro": AdditiveScore(_counts(numbered, 1), _macro), "f1_micro": accuracy}


def _entity_scores(pairs: Sequence[tuple[list[str], list[str]]]) -> dict[str, CorpusScore]:
    entities = [(_entities(predicted), _entities(true)) for predicted, true in pairs]
    by_type = _counts(entities, 0)  # (N, 3 * types)
    shared, predicted, true = by_type.reshape(len(pairs), 3, -1).sum(-1).T  # (N,) each
    return {
        "f1": ratio_score(2 * shared, predicted + true),
        "precision": ratio_score(shared, predicted),
        "recall": ratio_score(shared, true),
        "f1_macro": AdditiveScore(by_type, _macro),
    }


def _entities(tags: Sequence[str]) -> set[tuple[Any, ...]]:
    """(type, first word, last word) of each entity."""
    try:
        from seqeval.metrics.sequence_labeling import get_entities  # type: ignore[import-untyped]
    except ImportError as error:
        raise DeltatuneError('entities are scored with seqeval: pip install "deltatune[metrics]"') from error
    unknown = [tag for tag in tags if not ENTITY_TAG.fullmatch(tag)]
    if unknown:
        raise DeltatuneError(f"{unknown[0]!r} is not an entity tag: those are O, B-..., I-..., E-... and S-...")
    return set(get_entities([SEQEVAL_PREFIX.get(tag[0], tag[0]) + tag[1:] for tag in tags]))


def _counts(pairs: Sequence[tuple[set[tuple[Any, ...]], set[tuple[Any, ...]]]], index: int) -> Floats:
    """How many items of each kind, item[index], are shared, predicted and true in each text (N, 3 * kinds)."""
    kinds = sorted({item[index] for predicted, true in pairs for item in predicted | true})
    column = {kind: i for i, kind in enumerate(kinds)}
    counts: NDArray[np.float64] = np.zeros((len(pairs), 3, len(kinds)))
    for row, (predicted, true) in zip(counts, pairs, strict=True):
        for i, items in enumerate((predicted & true, predicted, true)):
            for item in items:
                row[i, column[item[index]]] += 1
    return counts.reshape(len(pairs), -1)


def _macro(sums: Floats) -> Floats:
    """Mean F1 of the kinds that occur, predicted or true: (..., 3 * kinds) -> (...)."""
    shared, predicted, true = np.moveaxis(sums.reshape(*sums.shape[:-1], 3, sums.shape[-1] // 3), -2, 0)
    return ratio(ratio(2 * shared, predicted + true).sum(-1), (predicted + true > 0).sum(-1))
