"""CIDEr-D: how much a text says what its references agree on, with common n-grams weighing less."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deltatune.tasks.metrics.corpus_score import AdditiveScore, mean_score
from deltatune.tasks.metrics.generation.tokenizers import Words, caption_words, ngrams

ORDERS = 4
"""Longest n-gram."""
SIGMA = 6.0
"""Words by which lengths may differ before it costs much."""


def cider(predictions: Sequence[str], references: Sequence[Sequence[str]], characters: bool = False) -> AdditiveScore:
    """10 · meanₙ mean over references e^{-(l-lʳ)²/2σ²} min(g, gʳ)·gʳ / ‖g‖‖gʳ‖     https://arxiv.org/abs/1411.5726.

    g: counts of n-grams times log (examples / examples whose references have it), all references of this corpus
    counted; so a corpus of one example scores 0. Mean over the texts, between 0 and 10, as coco-caption has it.
    """
    known = [[ngrams(caption_words(one, characters), ORDERS) for one in own] for own in references]
    frequency = Counter(ngram for own in known for ngram in set().union(*own))
    examples = math.log(len(known))
    rarity = {ngram: examples - math.log(times) for ngram, times in frequency.items()}
    scores = []
    for text, own in zip(predictions, known, strict=True):
        found = Vector.of(ngrams(caption_words(text, characters), ORDERS), rarity, examples)
        alike = [similarity(found, Vector.of(one, rarity, examples)) for one in own]
        scores.append(10 * sum(alike) / len(alike))
    return mean_score(scores)


@dataclass(frozen=True)
class Vector:
    """The weighted n-grams of a text."""

    weights: tuple[dict[Words, float], ...]
    """Of each order."""
    norms: tuple[float, ...]
    length: int
    """In pairs of words, as the reference code has it."""

    @classmethod
    def of(cls, counts: Mapping[Words, int], rarity: Mapping[Words, float], unseen: float) -> Vector:
        """From counts of n-grams; those in no reference are as rare as those in one."""
        weights: tuple[dict[Words, float], ...] = tuple({} for _ in range(ORDERS))
        for ngram, times in counts.items():
            weights[len(ngram) - 1][ngram] = times * rarity.get(ngram, unseen)
        norms = tuple(math.sqrt(sum(weight**2 for weight in own.values())) for own in weights)
        return cls(weights, norms, sum(times for ngram, times in counts.items() if len(ngram) == 2))


def similarity(found: Vector, reference: Vector) -> float:
    """Mean cosine of the orders, clipped to the reference's weights, less for another length: 0 to 1."""
    total = 0.0
    for own, true, a, b in zip(found.weights, reference.weights, found.norms, reference.norms, strict=True):
        if a and b:
            total += sum(min(weight, true[ngram]) * true[ngram] for ngram, weight in own.items() if ngram in true) / (
                a * b
            )
    return total / ORDERS * math.exp(-((found.length - reference.length) ** 2) / (2 * SIGMA**2))
