"""METEOR: words matched by form, then by stem, and how little they are scattered."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise

from deltatune.tasks.metrics.corpus_score import AdditiveScore, mean_score
from deltatune.tasks.metrics.generation.tokenizers import missing, splitter

ALPHA = 0.9
"""Weight of precision; of recall 1 - α. (F = PR / (αP + (1-α)R): recall counts more.)"""
BETA = 3.0
GAMMA = 0.5

Word = tuple[int, str]
"""A word and its place."""


def meteor(predictions: Sequence[str], references: Sequence[Sequence[str]], characters: bool = False) -> AdditiveScore:
    """METEOR = (1 - γ(chunks/matches)^β) · PR/(αP + (1-α)R)     Lavie and Agarwal 2007, https://aclanthology.org/W07-0734.

    Best reference, mean over the texts. Lower-cased words match by form or else by Porter's stem, with the parameters
    and the alignment of nltk. Synonyms are not matched: they need WordNet, and METEOR 1.5 other tables still, so that
    scores are somewhat below those of papers that use them.
    """
    split, stem = splitter(characters), _stemmer()
    scores = []
    for text, own in zip(predictions, references, strict=True):
        found = split(text.lower())
        scores.append(max(score(found, split(one.lower()), stem) for one in own))
    return mean_score(scores)


def score(found: Sequence[str], reference: Sequence[str], stem: Callable[[str], str]) -> float:
    """METEOR of one text and one reference."""
    pairs = align(found, reference, stem)
    if not pairs:
        return 0.0
    precision, recall = len(pairs) / len(found), len(pairs) / len(reference)
    mean = precision * recall / (ALPHA * precision + (1 - ALPHA) * recall)
    chunks = 1 + sum(after != (before[0] + 1, before[1] + 1) for before, after in pairwise(pairs))
    penalty: float = GAMMA * (chunks / len(pairs)) ** BETA
    return (1 - penalty) * mean


def align(found: Sequence[str], reference: Sequence[str], stem: Callable[[str], str]) -> list[tuple[int, int]]:
    """Places of matched words, in the order of the found ones."""
    exact, left, right = _match(list(enumerate(found)), list(enumerate(reference)))
    stems, _, _ = _match([(i, stem(word)) for i, word in left], [(i, stem(word)) for i, word in right])
    return sorted(exact + stems)


def _match(found: list[Word], reference: list[Word]) -> tuple[list[tuple[int, int]], list[Word], list[Word]]:
    """Matched places, and the words left over on both sides. From the end on, each takes the last that is free."""
    places: dict[str, list[int]] = defaultdict(list)
    for place, word in reference:
        places[word].append(place)
    pairs, left, taken = [], [], set()
    for place, word in reversed(found):
        if places[word]:
            pairs.append((place, places[word].pop()))
            taken.add(pairs[-1][1])
        else:
            left.append((place, word))
    return pairs, left[::-1], [one for one in reference if one[0] not in taken]


def _stemmer() -> Callable[[str], str]:
    try:
        from nltk.stem.porter import PorterStemmer  # type: ignore[import-untyped]
    except ImportError as error:
        raise missing("nltk") from error
    return cache(PorterStemmer().stem)
