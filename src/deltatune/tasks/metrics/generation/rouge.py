"""ROUGE: F1 of shared n-grams and of the longest common subsequence, as in the package rouge-score."""

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
    """F1 with the best reference, mean over the texts; Lin 2004, https://aclanthology.org/W04-1013.

    The sentences of rougeLsum are lines. Words are not stemmed. In texts of mostly ASCII letters words are those of
    rouge-score, as in papers: a-z and 0-9, with other letters as spaces. In other texts words have letters of any
    script, and with `characters` each Chinese or Japanese character is a word.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]
    except ImportError as error:
        raise missing("rouge-score") from error
    tokenizer = UnicodeWords() if characters or not mostly_ascii(references) else None
    scorer = RougeScorer(list(names), tokenizer=tokenizer)
    rows: list[list[float]] = []
    for text, row in zip(predictions, references, strict=True):
        scores = scorer.score_multi(row, text)
        rows.append([scores[name].fmeasure for name in names])
    return {name: mean_score(values) for name, values in zip(names, zip(*rows, strict=True), strict=True)}


def mostly_ascii(references: Sequence[Sequence[str]]) -> bool:
    """Whether at least half of the letters are ASCII."""
    letters = [letter for row in references for text in row for letter in text if letter.isalpha()]
    return 2 * sum(map(str.isascii, letters)) >= len(letters)


@dataclass(frozen=True)
class UnicodeWords:
    """Tokenizer for rouge-score: words of any script, and single characters of scripts without spaces."""

    def tokenize(self, text: str) -> list[str]:
        """Lower-case words."""
        return WORD.findall(IDEOGRAPH.sub(r" \g<0> ", text.lower()))
