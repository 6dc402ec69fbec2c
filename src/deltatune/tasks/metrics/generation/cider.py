"""CIDEr-D: similarity of the n-grams of a text and its references, weighted by TF-IDF."""

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
"""Standard deviation of the length penalty, in words."""


def cider(predictions: Sequence[str], references: Sequence[Sequence[str]], characters: bool = False) -> AdditiveScore:
    """10 · meanₙ mean over references e^{-(l-lʳ)²/2σ²} min(g, gʳ)·gʳ / ‖g‖‖gʳ‖     https://arxiv.org/abs/1411.5726.

    g: counts of n-grams times log (examples / examples whose references have it), over all references of this corpus,
    so a corpus of one example scores 0. Mean over the texts, between 0 and 10, as in coco-caption.
    """
    counts = [[ngrams(caption_words(text, characters), ORDERS) for text in row] for row in references]
    frequency = Counter(ngram for row in counts for ngram in set().union(*row))
    log_examples = math.log(len(counts))
    idf = {ngram: log_examples - math.log(times) for ngram, times in frequency.items()}
    scores = []
    for text, row in zip(predictions, counts, strict=True):
        predicted = TfIdf.of(ngrams(caption_words(text, characters), ORDERS), idf, log_examples)
        similarities = [similarity(predicted, TfIdf.of(reference, idf, log_examples)) for reference in row]
        scores.append(10 * sum(similarities) / len(similarities))
    return mean_score(scores)


@dataclass(frozen=True)
class TfIdf:
    """The TF-IDF vectors of a text, one for each order of n-grams."""

    weights: tuple[dict[Words, float], ...]
    """Weight of each n-gram, by order."""
    norms: tuple[float, ...]
    length: int
    """Number of bigrams, the length in the reference code."""

    @classmethod
    def of(cls, counts: Mapping[Words, int], idf: Mapping[Words, float], unseen: float) -> TfIdf:
        """From counts of n-grams; those in no reference have the weight of those in one."""
        weights: tuple[dict[Words, float], ...] = tuple({} for _ in range(ORDERS))
        for ngram, times in counts.items():
            weights[len(ngram) - 1][ngram] = times * idf.get(ngram, unseen)
        norms = tuple(math.sqrt(sum(weight**2 for weight in order.values())) for order in weights)
        return cls(weights, norms, sum(times for ngram, times in counts.items() if len(ngram) == 2))


def similarity(predicted: TfIdf, reference: TfIdf) -> float:
    """Mean cosine over the orders, with weights clipped to the reference's and a length penalty: 0 to 1."""
    total = 0.0
    orders = zip(predicted.weights, reference.weights, predicted.norms, reference.norms, strict=True)
    for weights, true, norm, true_norm in orders:
        if norm and true_norm:
            shared = (min(weight, true[ngram]) * true[ngram] for ngram, weight in weights.items() if ngram in true)
            total += sum(shared) / (norm * true_norm)
    return total / ORDERS * math.exp(-((predicted.length - reference.length) ** 2) / (2 * SIGMA**2))
