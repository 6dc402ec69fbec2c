"""BLEU, chrF and TER: sacrebleu counts, once for each text; the scores are made of sums of its counts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

from deltatune.tasks.metrics.corpus_score import AdditiveScore, Floats, ratio
from deltatune.tasks.metrics.generation.tokenizers import missing

ORDERS = 4
"""Longest n-gram of BLEU."""
BETA = 2
"""How much more recall weighs than precision in chrF."""


def bleu(predictions: Sequence[str], references: Sequence[Sequence[str]], characters: bool = False) -> AdditiveScore:
    """BLEU = BP · exp(mean log pₙ), n to 4, smoothed as mteval does: sacrebleu's corpus_bleu, tokenize 13a (or zh)."""
    metric = _sacrebleu().BLEU(tokenize="zh" if characters else "13a", force=True)
    return AdditiveScore(_counts(metric, predictions, references), _bleu)


def chrf(predictions: Sequence[str], references: Sequence[Sequence[str]], characters: bool = False) -> AdditiveScore:
    """ChrF2, F of character n-grams to 6: sacrebleu's corpus_chrf. Spaces do not count, so no script is different."""
    return AdditiveScore(_counts(_sacrebleu().CHRF(), predictions, references), _chrf)


def ter(predictions: Sequence[str], references: Sequence[Sequence[str]], characters: bool = False) -> AdditiveScore:
    """Edits, shifts of phrases among them, per reference word: sacrebleu's corpus_ter.

    With characters: its normalized and asian_support, which split Chinese and Japanese.
    """
    metric = _sacrebleu().TER(normalized=characters, asian_support=characters)
    rows = []
    for text, own in zip(predictions, references, strict=True):
        found, *known = (metric._preprocess_segment(one).split() for one in (text, *own))
        rows.append([_fewest_edits(found, known), sum(map(len, known)) / len(known)])
    return AdditiveScore(np.array(rows, dtype=np.float64), _ter)


def _sacrebleu() -> Any:
    try:
        import sacrebleu
    except ImportError as error:
        raise missing("sacrebleu") from error
    return sacrebleu


def _counts(metric: Any, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Floats:
    """What sacrebleu counts in each text (N, counts). None fills up the references of texts that have fewer."""
    streams = list(zip_longest(*references))
    return np.array(metric._extract_corpus_statistics(predictions, streams), dtype=np.float64)


def _fewest_edits(found: list[str], references: list[list[str]]) -> int:
    """Edits to the nearest reference.

    Counting them takes long, and shifts change no word: a reference that lacks as many words as the nearest one so far
    needs edits is left out.
    """
    from sacrebleu.metrics.lib_ter import translation_edit_rate

    known = [(max(len(found), len(one)) - (Counter(found) & Counter(one)).total(), one) for one in references]
    fewest = math.inf
    for at_least, one in sorted(known):
        if at_least < fewest:
            fewest = min(fewest, translation_edit_rate(found, one)[0])
    return int(fewest)


def _bleu(sums: Floats) -> Floats:
    """(..., length, reference length, 4 matches, 4 totals) -> (...)."""
    own, reference = sums[..., 0], sums[..., 1]
    hits, totals = sums[..., 2 : 2 + ORDERS], sums[..., 2 + ORDERS :]
    # Orders without a hit count half a hit, the next one a quarter, ...
    halves = np.cumsum((hits == 0) & (totals > 0), axis=-1)
    precision = ratio(np.where(hits > 0, hits, 0.5**halves), totals)  # (..., 4)
    defined = (hits.sum(-1) > 0) & (totals > 0).all(-1)
    mean = np.exp(np.log(np.where(precision > 0, precision, 1.0)).mean(-1))
    brevity = np.exp(np.minimum(0.0, 1 - ratio(reference, own)))
    return np.where(defined, brevity * mean, 0.0)


def _chrf(sums: Floats) -> Floats:
    """(..., 6 times: predicted, true, shared n-grams) -> (...)."""
    own, true, shared = np.moveaxis(sums.reshape(*sums.shape[:-1], -1, 3), -1, 0)  # (..., 6) each
    there = (own > 0) & (true > 0)  # texts may be too short for an order
    orders = there.sum(-1)
    precision = ratio((ratio(shared, own) * there).sum(-1), orders)
    recall = ratio((ratio(shared, true) * there).sum(-1), orders)
    return ratio((1 + BETA**2) * precision * recall, BETA**2 * precision + recall)


def _ter(sums: Floats) -> Floats:
    """(..., edits, mean reference length) -> (...)."""
    edits, length = sums[..., 0], sums[..., 1]
    # Words where no reference has any: all of them are wrong.
    return np.where(length > 0, ratio(edits, length), (edits > 0).astype(np.float64))
