"""BLEU, chrF and TER: scores of sums of the counts that sacrebleu makes for each text."""

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
"""Weight of recall against precision in chrF."""


def bleu(predictions: Sequence[str], references: Sequence[Sequence[str]], characters: bool = False) -> AdditiveScore:
    """BLEU = BP · exp(mean log pₙ), n to 4, smoothed as mteval does: sacrebleu's corpus_bleu, tokenize 13a (or zh)."""
    metric = _sacrebleu().BLEU(tokenize="zh" if characters else "13a", force=True)
    return AdditiveScore(_counts(metric, predictions, references), _bleu)


def chrf(predictions: Sequence[str], references: Sequence[Sequence[str]], characters: bool = False) -> AdditiveScore:
    """ChrF2, F of character n-grams to 6: sacrebleu's corpus_chrf. It ignores spaces, so all scripts are alike."""
    return AdditiveScore(_counts(_sacrebleu().CHRF(), predictions, references), _chrf)


def ter(predictions: Sequence[str], references: Sequence[Sequence[str]], characters: bool = False) -> AdditiveScore:
    """Edits, including shifts of phrases, per reference word: sacrebleu's corpus_ter.

    characters: use its options normalized and asian_support, which split Chinese and Japanese.
    """
    metric = _sacrebleu().TER(normalized=characters, asian_support=characters)
    rows = []
    for text, row in zip(predictions, references, strict=True):
        words, *reference_words = (metric._preprocess_segment(segment).split() for segment in (text, *row))
        mean_length = sum(map(len, reference_words)) / len(reference_words)
        rows.append([_fewest_edits(words, reference_words), mean_length])
    return AdditiveScore(np.array(rows, dtype=np.float64), _ter)


def _sacrebleu() -> Any:
    try:
        import sacrebleu
    except ImportError as error:
        raise missing("sacrebleu") from error
    return sacrebleu


def _counts(metric: Any, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Floats:
    """The counts of sacrebleu for each text (N, counts). Texts with fewer references are padded with None."""
    streams = list(zip_longest(*references))
    return np.array(metric._extract_corpus_statistics(predictions, streams), dtype=np.float64)


def _fewest_edits(words: list[str], references: list[list[str]]) -> int:
    """Edits to the nearest reference.

    Counting edits is slow, and shifts change no words. So the number of words without a match is a lower bound, and a
    reference whose bound is no better than the nearest one so far is skipped.
    """
    from sacrebleu.metrics.lib_ter import translation_edit_rate

    bounds = [(max(len(words), len(row)) - (Counter(words) & Counter(row)).total(), row) for row in references]
    fewest = math.inf
    for bound, reference in sorted(bounds):
        if bound < fewest:
            fewest = min(fewest, translation_edit_rate(words, reference)[0])
    return int(fewest)


def _bleu(sums: Floats) -> Floats:
    """(..., length, reference length, 4 matches, 4 totals) -> (...)."""
    length, reference_length = sums[..., 0], sums[..., 1]
    hits, totals = sums[..., 2 : 2 + ORDERS], sums[..., 2 + ORDERS :]
    # The first order without a hit counts half a hit, the next one a quarter, ...
    halves = np.cumsum((hits == 0) & (totals > 0), axis=-1)
    precision = ratio(np.where(hits > 0, hits, 0.5**halves), totals)  # (..., 4)
    defined = (hits.sum(-1) > 0) & (totals > 0).all(-1)
    mean = np.exp(np.log(np.where(precision > 0, precision, 1.0)).mean(-1))
    brevity = np.exp(np.minimum(0.0, 1 - ratio(reference_length, length)))
    return np.where(defined, brevity * mean, 0.0)


def _chrf(sums: Floats) -> Floats:
    """(..., 6 times: predicted, true, shared n-grams) -> (...)."""
    predicted, true, shared = np.moveaxis(sums.reshape(*sums.shape[:-1], -1, 3), -1, 0)  # (..., 6) each
    defined = (predicted > 0) & (true > 0)  # texts may be too short for an order
    orders = defined.sum(-1)
    precision = ratio((ratio(shared, predicted) * defined).sum(-1), orders)
    recall = ratio((ratio(shared, true) * defined).sum(-1), orders)
    return ratio((1 + BETA**2) * precision * recall, BETA**2 * precision + recall)


def _ter(sums: Floats) -> Floats:
    """(..., edits, mean reference length) -> (...)."""
    edits, length = sums[..., 0], sums[..., 1]
    # If the references have no words, all words are wrong.
    return np.where(length > 0, ratio(edits, length), (edits > 0).astype(np.float64))
