"""Scores of answers to questions, as SQuAD's evaluation script has them (https://rajpurkar.github.io/SQuAD-explorer/)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

from deltatune.tasks.metrics.additive import Tally, check_pairs, mean_of

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def span_tallies(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Tally]:
    """em and f1 of the words of each prediction (N) with its best reference, between 0 and 1.

    An example without references, or with empty ones alone, has no answer; an empty prediction says so. Where there are
    such examples: also has_answer_em, has_answer_f1 and no_answer_em (there em and f1 are the same), each over its own
    kind. Equal to version 2.0 of the script, and to 1.1 where every example has an answer.
    """
    check_pairs(predictions, references)
    answers = [[words(one) for one in own] for own in references]
    # An answer of articles and punctuation alone cannot be found; without another one the right answer is none.
    known = [[one for one in own if one] or [[]] for own in answers]
    found = [words(one) for one in predictions]
    em = [float(own in mine) for own, mine in zip(found, known, strict=True)]
    f1 = [max(overlap(own, one) for one in mine) for own, mine in zip(found, known, strict=True)]
    tallies = {"em": mean_of(em), "f1": mean_of(f1)}
    answered = [any(own) for own in references]
    if all(answered):
        return tallies
    if any(answered):
        tallies |= {"has_answer_em": mean_of(em, answered), "has_answer_f1": mean_of(f1, answered)}
    return tallies | {"no_answer_em": mean_of(em, [not one for one in answered])}


def words(text: str) -> list[str]:
    """The words that count: lower case, no punctuation, no articles."""
    return ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split()


def overlap(found: Sequence[str], answer: Sequence[str]) -> float:
    """F1 of two bags of words; two empty ones agree."""
    if not found or not answer:
        return float(found == answer)
    shared = sum((Counter(found) & Counter(answer)).values())
    return 2 * shared / (len(found) + len(answer))
