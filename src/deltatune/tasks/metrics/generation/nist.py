"""NIST: n-grams weighted by how much they tell, as mteval-v13a counts."""

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
"""Makes the penalty a half where the text has two thirds of the references' words."""
LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


def nist(predictions: Sequence[str], references: Sequence[Sequence[str]], characters: bool = False) -> AdditiveScore:
    """NIST = exp(β log² min(1, L/L̄)) · Σₙ Σ info(shared n-grams) / n-grams     Doddington 2002.

    info(w₁…wₙ) = log₂ (count of w₁…wₙ₋₁ / count of w₁…wₙ) in all references. A shared n-gram counts as often as the
    reference that has most of it. Letters A-Z are lower-cased. L̄, the references' mean length, is all their words over
    the mean number of references a text: so it is in the E2E challenge's edition of the script, which lets texts have
    different numbers of them.
    """
    split = splitter(characters)
    known = [[ngrams(split(one.translate(LOWER)), ORDERS) for one in own] for own in references]
    counts: Counter[Words] = Counter()
    for own in known:
        for one in own:
            counts.update(one)
    info = information(counts)
    rows = []
    for text, own in zip(predictions, known, strict=True):
        found = ngrams(split(text.translate(LOWER)), ORDERS)
        most: Counter[Words] = Counter()
        for one in own:
            most |= one
        told, there = np.zeros(ORDERS), np.zeros(ORDERS)
        for ngram, times in found.items():
            there[len(ngram) - 1] += times
            told[len(ngram) - 1] += info.get(ngram, 0.0) * min(times, most[ngram])
        words = sum(times for one in own for ngram, times in one.items() if len(ngram) == 1)
        rows.append([*told, *there, words, len(own), 1])
    return AdditiveScore(np.array(rows, dtype=np.float64), _nist)


def information(counts: Counter[Words]) -> dict[Words, float]:
    """Bits that each n-gram's last word tells after the others."""
    total = sum(times for ngram, times in counts.items() if len(ngram) == 1)
    return {ngram: math.log2((counts[ngram[:-1]] if ngram[1:] else total) / times) for ngram, times in counts.items()}


def _nist(sums: Floats) -> Floats:
    """(..., 5 told bits, 5 n-grams, reference words, references, texts) -> (...)."""
    told, there = sums[..., :ORDERS], sums[..., ORDERS : 2 * ORDERS]
    words, references, texts = np.moveaxis(sums[..., 2 * ORDERS :], -1, 0)
    length = ratio(words * texts, references)
    share = np.minimum(1.0, ratio(there[..., 0], length))
    penalty = np.exp(BETA * np.log(np.where(share > 0, share, 1.0)) ** 2) * (share > 0)
    return np.asarray(ratio(told, there).sum(-1) * penalty, dtype=np.float64)
