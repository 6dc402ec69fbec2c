"""METEOR: F of words matched by form or stem, with a penalty for scattered matches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise

from deltatune.tasks.metrics.corpus_score import AdditiveScore, mean_score
from deltatune.tasks.metrics.generation.tokenizers import missing, splitter

ALPHA = 0.9
"""F = PR / (αP + (1-α)R), so recall has more weight than precision."""
BETA = 3.0
GAMMA = 0.5

Word = tuple[int, str]
"""A word's position and form."""


def meteor(predictions: Sequence[str], references: Sequence[Sequence[str]], characters: bool = False) -> AdditiveScore:
    """METEOR = (1 - γ(chunks/matches)^β) · PR/(αP + (1-α)R)     Lavie and Agarwal 2007, https://aclanthology.org/W07-0734.

    Best reference, mean over the texts. Lower-cased words match by form or else by Porter's stem, with the parameters
    and the alignment of nltk. Synonyms do not match, as that needs WordNet (and METEOR 1.5 needs more tables), so
    scores are somewhat below those of papers that use them.
    """
    split, stem = splitter(characters), _stemmer()
    scores = []
    for text, row in zip(predictions, references, strict=True):
        words = split(text.lower())
        scores.append(max(segment_meteor(words, split(reference.lower()), stem) for reference in row))
    return mean_score(scores)


def segment_meteor(words: Sequence[str], reference: Sequence[str], stem: Callable[[str], str]) -> float:
    """METEOR of one text and one reference."""
    pairs = align(words, reference, stem)
    if not pairs:
        return 0.0
    precision, recall = len(pairs) / len(words), len(pairs) / len(reference)
    mean = precision * recall / (ALPHA * precision + (1 - ALPHA) * recall)
    chunks = 1 + sum(after != (before[0] + 1, before[1] + 1) for before, after in pairwise(pairs))
    penalty: float = GAMMA * (chunks / len(pairs)) ** BETA
    return (1 - penalty) * mean


def align(words: Sequence[str], reference: Sequence[str], stem: Callable[[str], str]) -> list[tuple[int, int]]:
    """Positions of matched words, in the order of the text."""
    exact, left, right = _match(list(enumerate(words)), list(enumerate(reference)))
    stems, _, _ = _match([(i, stem(word)) for i, word in left], [(i, stem(word)) for i, word in right])
    return sorted(exact + stems)


def _match(words: list[Word], reference: list[Word]) -> tuple[list[tuple[int, int]], list[Word], list[Word]]:
    """Matched positions, and the unmatched words of both sides. From the end, each word takes the last free match."""
    free: dict[str, list[int]] = defaultdict(list)
    for position, word in reference:
        free[word].append(position)
    pairs, unmatched, taken = [], [], set()
    for position, word in reversed(words):
        if free[word]:
            pairs.append((position, free[word].pop()))
            taken.add(pairs[-1][1])
        else:
            unmatched.append((position, word))
    return pairs, unmatched[::-1], [(position, word) for position, word in reference if position not in taken]


def _stemmer() -> Callable[[str], str]:
    try:
        from nltk.stem.porter import PorterStemmer  # type: ignore[import-untyped]
    except ImportError as error:
        raise missing("nltk") from error
    return cache(PorterStemmer().stem)
