"""ROUGE: F of shared n-grams and of the longest common subsequence, as the package rouge-score has it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from deltatune.tasks.metrics.corpus_score import AdditiveScore, mean_score
from deltatune.tasks.metrics.generation.tokenizers import IDEOGRAPH, LETTER, missing

ROUGES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
WORD = re.compile(f"{LETTER}+")


def rouge(
    predictions: Sequence[str], references: Sequence[Sequence[str]], names: Sequence[str], characters: bool = False
) -> dict[str, AdditiveScore]:
    """F with the best reference, mean over the texts; Lin 2004, https://aclanthology.org/W04-1013.

    Sentences of rougeLsum are lines. Words are not stemmed. rouge-score's words are made of a-z and 0-9, and all other
    letters are spaces to it; that is kept where papers compare such scores, in texts of mostly ASCII letters. Texts in
    other scripts have words of any letters, and with `characters` each Chinese or Japanese character is one.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]
    except ImportError as error:
        raise missing("rouge-score") from error
    own_words = AnyLetters() if characters or not mostly_ascii(references) else None
    scorer = RougeScorer(list(names), tokenizer=own_words)
    found: list[list[float]] = []
    for text, own in zip(predictions, references, strict=True):
        scores = scorer.score_multi(own, text)
        found.append([scores[name].fmeasure for name in names])
    return {name: mean_score(values) for name, values in zip(names, zip(*found, strict=True), strict=True)}


def mostly_ascii(references: Sequence[Sequence[str]]) -> bool:
    """Whether half of the letters or more are ASCII."""
    letters = [letter for own in references for text in own for letter in text if letter.isalpha()]
    return 2 * sum(map(str.isascii, letters)) >= len(letters)


@dataclass(frozen=True)
class AnyLetters:
    """Words of letters of any script, those of scripts without spaces one by one."""

    def tokenize(self, text: str) -> list[str]:
        """Lower-case words."""
        return WORD.findall(IDEOGRAPH.sub(r" \g<0> ", text.lower()))
