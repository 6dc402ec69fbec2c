"""Exact match and F1 of extracted answers, as in SQuAD's evaluation script (https://rajpurkar.github.io/SQuAD-explorer/)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

from deltatune.tasks.metrics.corpus_score import CorpusScore, check_pairs, mean_score

ARTICLES = re.compile(r"\b(a|an|the)\b")
SPAN_METRICS = ("f1", "em")
"""Metrics of every data set; the others depend on whether it has questions without an answer."""
PUNCTUATION = str.maketrans("", "", string.punctuation)


def span_scores(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, CorpusScore]:
    """em and f1 of each prediction (N) against its best reference, between 0 and 1.

    An example without references, or with empty ones alone, has no answer, and an empty prediction is right. Where
    there are such examples, has_answer_em, has_answer_f1 and no_answer_em (equal to the f1 there) score each kind on
    its own. Equal to version 2.0 of the script, and to version 1.1 where every example has an answer.
    """
    check_pairs(predictions, references)
    reference_words = [[words(text) for text in row] for row in references]
    # A reference of articles and punctuation alone has no words left; without another one the right answer is none.
    reference_words = [[answer for answer in row if answer] or [[]] for row in reference_words]
    predicted_words = [words(text) for text in predictions]
    pairs = list(zip(predicted_words, reference_words, strict=True))
    em = [float(predicted in row) for predicted, row in pairs]
    f1 = [max(overlap(predicted, answer) for answer in row) for predicted, row in pairs]
    scores: dict[str, CorpusScore] = {"em": mean_score(em), "f1": mean_score(f1)}
    answerable = [any(row) for row in references]
    if all(answerable):
        return scores
    if any(answerable):
        scores |= {"has_answer_em": mean_score(em, answerable), "has_answer_f1": mean_score(f1, answerable)}
    return scores | {"no_answer_em": mean_score(em, [not flag for flag in answerable])}


def words(text: str) -> list[str]:
    """The words that are compared: lower case, without punctuation and articles."""
    return ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split()


def overlap(predicted: Sequence[str], answer: Sequence[str]) -> float:
    """F1 of two bags of words; two empty bags agree."""
    if not predicted or not answer:
        return float(predicted == answer)
    shared = sum((Counter(predicted) & Counter(answer)).values())
    return 2 * shared / (len(predicted) + len(answer))
