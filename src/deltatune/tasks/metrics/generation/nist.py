"""NIST: n-grams weighted by their information, as in mteval-v13a."""

from __future__ import annotations

import math
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

from deltatune.tasks.metrics.corpus_score import AdditiveScore, Floats, ratio
from deltatune.tasks.metrics.generation.tokenizers import Words, ngrams, splitter

ORDERS = 5
"""Longest n-gram."""
BETA = math.log(0.5) / math.log(1.5) ** 2
"""The length penalty is one half where the text has two thirds of the references' words."""
LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


def nist(predictions: Sequence[str], references: Sequence[Sequence[str]], characters: bool = False) -> AdditiveScore:
    """NIST = exp(β log² min(1, L/L̄)) · Σₙ Σ info(shared n-grams) / n-grams     Doddington 2002.

    info(w₁…wₙ) = log₂ (count of w₁…wₙ₋₁ / count of w₁…wₙ) in all references. The count of a shared n-gram is limited
    to the largest in one reference. Letters A-Z are lower-cased. L̄, the references' mean length, is all their words
    over the mean number of references per text, as in the E2E challenge's version of the script, where texts may have
    different numbers of references.
    """
    split = splitter(characters)
    reference_counts = [[ngrams(split(text.translate(LOWER)), ORDERS) for text in row] for row in references]
    corpus_counts: Counter[Words] = Counter()
    for row in reference_counts:
        for counts in row:
            corpus_counts.update(counts)
    info = information(corpus_counts)
    rows = []
    for text, row in zip(predictions, reference_counts, strict=True):
        limits: Counter[Words] = Counter()
        for counts in row:
            limits |= counts
        bits, totals = np.zeros(ORDERS), np.zeros(ORDERS)
        for ngram, times in ngrams(split(text.translate(LOWER)), ORDERS).items():
            totals[len(ngram) - 1] += times
            bits[len(ngram) - 1] += info.get(ngram, 0.0) * min(times, limits[ngram])
        words = sum(times for counts in row for ngram, times in counts.items() if len(ngram) == 1)
        rows.append([*bits, *totals, words, len(row), 1])
    return AdditiveScore(np.array(rows, dtype=np.float64), _nist)


def information(counts: Counter[Words]) -> dict[Words, float]:
    """Information of each n-gram's last word given the others, in bits."""
    total = sum(times for ngram, times in counts.items() if len(ngram) == 1)
    return {ngram: math.log2((counts[ngram[:-1]] if ngram[1:] else total) / times) for ngram, times in counts.items()}


def _nist(sums: Floats) -> Floats:
    """(..., 5 sums of bits, 5 numbers of n-grams, reference words, references, texts) -> (...)."""
    bits, totals = sums[..., :ORDERS], sums[..., ORDERS : 2 * ORDERS]
    words, references, texts = np.moveaxis(sums[..., 2 * ORDERS :], -1, 0)
    length = ratio(words * texts, references)
    share = np.minimum(1.0, ratio(totals[..., 0], length))
    penalty = np.exp(BETA * np.log(np.where(share > 0, share, 1.0)) ** 2) * (share > 0)
    return np.asarray(ratio(bits, totals).sum(-1) * penalty, dtype=np.float64)
