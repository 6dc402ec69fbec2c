"""Scores of tagged words: of the entities that tags with B- and I- mark, or of the single tags."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.tasks.metrics.additive import Floats, Tally, check_pairs, ratio, ratio_of

ENTITY_TAG = re.compile(r"O|[BIESLU](-.+)?", re.DOTALL)
"""Outside, begin, inside, end (or last), single (or unit): IOB1, IOB2, IOBES and BILOU."""
AS_SEQEVAL = {"L": "E", "U": "S"}


def is_entity_scheme(tags: Iterable[str]) -> bool:
    """Whether tags mark entities: all are "O" or have one of the marks B, I, E, S (L, U), and "O" or a B or I is there.

    "O" alone is no scheme: it does not say whether entities or words are tagged.
    """
    seen = set(tags)
    marks = {tag[0] for tag in seen if ENTITY_TAG.fullmatch(tag)}
    typed = any("-" in tag for tag in seen)
    # Single letters may be any tags; as a scheme without types they come with "O".
    enough = bool(marks & set("BIS")) or "U" in marks if typed else "O" in seen and bool(marks & set("BI"))
    return enough and all(ENTITY_TAG.fullmatch(tag) for tag in seen)


def tag_tallies(
    predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]], entities: bool | None = None
) -> dict[str, Tally]:
    """Scores of the tags (N lists) of N texts.

    entities: whether the tags mark entities; by default what the tags seen look like (`is_entity_scheme`).
    For entities f1, precision, recall (of all together), f1_macro (mean over types) and accuracy (per word), equal to
    seqeval's in its default mode; else accuracy, f1_macro (mean over the tags seen) and f1_micro (per word).
    Raises DeltatuneError naming the rows that have as many predicted as true tags not.
    """
    check_pairs(predictions, references)
    pairs = [(list(own), list(true)) for own, true in zip(predictions, references, strict=True)]
    raise_all([f"row {i}: {len(own)} predicted tags for {len(true)}" for i, (own, true) in enumerate(pairs)
               if len(own) != len(true)][:10])  # fmt: skip
    if entities is None:
        entities = is_entity_scheme(tag for pair in pairs for own in pair for tag in own)
    right = [sum(a == b for a, b in zip(own, true, strict=True)) for own, true in pairs]
    accuracy = ratio_of(right, [len(true) for _, true in pairs])
    if entities:
        return _entity_tallies(pairs) | {"accuracy": accuracy}
    words = [({(i, t) for i, t in enumerate(own)}, {(i, t) for i, t in enumerate(true)}) for own, true in pairs]
    return {"accuracy": accuracy, "f1_macro": Tally(_counts(words, 1), _macro), "f1_micro": accuracy}


def _entity_tallies(pairs: Sequence[tuple[list[str], list[str]]]) -> dict[str, Tally]:
    found = [(_entities(own), _entities(true)) for own, true in pairs]
    by_type = _counts(found, 0)  # (N, 3 * types)
    shared, own, true = by_type.reshape(len(pairs), 3, -1).sum(-1).T  # (N,) each
    return {
        "f1": ratio_of(2 * shared, own + true),
        "precision": ratio_of(shared, own),
        "recall": ratio_of(shared, true),
        "f1_macro": Tally(by_type, _macro),
    }


def _entities(tags: Sequence[str]) -> set[tuple[Any, ...]]:
    """(type, first word, last word) of each entity."""
    try:
        from seqeval.metrics.sequence_labeling import get_entities  # type: ignore[import-untyped]
    except ImportError as error:
        raise DeltatuneError('entities are scored with seqeval: pip install "deltatune[metrics]"') from error
    strange = [tag for tag in tags if not ENTITY_TAG.fullmatch(tag)]
    if strange:
        raise DeltatuneError(f"{strange[0]!r} is no entity tag: those are O, B-..., I-..., E-... and S-...")
    return set(get_entities([AS_SEQEVAL.get(tag[0], tag[0]) + tag[1:] for tag in tags]))


def _counts(found: Sequence[tuple[set[tuple[Any, ...]], set[tuple[Any, ...]]]], at: int) -> Floats:
    """How many items of each kind, item[at], are shared, predicted and true in each text (N, 3 * kinds)."""
    kinds = sorted({item[at] for own, true in found for item in own | true})
    column = {kind: i for i, kind in enumerate(kinds)}
    counts: NDArray[np.float64] = np.zeros((len(found), 3, len(kinds)))
    for row, (own, true) in zip(counts, found, strict=True):
        for place, items in enumerate((own & true, own, true)):
            for item in items:
                row[place, column[item[at]]] += 1
    return counts.reshape(len(found), -1)


def _macro(sums: Floats) -> Floats:
    """Mean F1 of the kinds that are there, predicted or true: (..., 3 * kinds) -> (...)."""
    shared, own, true = np.moveaxis(sums.reshape(*sums.shape[:-1], 3, sums.shape[-1] // 3), -2, 0)
    return ratio(ratio(2 * shared, own + true).sum(-1), (own + true > 0).sum(-1))
