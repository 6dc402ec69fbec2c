"""Quality filters of Self-Instruct and Alpaca: which instructions and examples are rejected, and why."""

from __future__ import annotations

import re
import string
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np

from deltatune.prompting.self_instruct.seed_tasks import InstructionExample
from deltatune.prompting.self_instruct.self_instruct_settings import SelfInstruct
from deltatune.tasks.metrics.generation.rouge import UnicodeWords
from deltatune.tasks.metrics.generation.tokenizers import IDEOGRAPH

PUNCTUATION = frozenset(string.punctuation + "。，、；：！？…")

TRUNCATED = "truncated"
MALFORMED = "malformed"
TOO_SHORT = "too short"
TOO_LONG = "too long"
BLOCKED_WORD = "contains a blocked word"
BLOCKED_START = "starts with a blocked phrase"
PUNCTUATION_START = "starts with punctuation"
TOO_SIMILAR = "too similar"
NO_OUTPUT = "no output"
REPEATS_INPUT = "output repeats the input"
ENDS_WITH_COLON = "ends with a colon"
CONTRADICTION = "one input, several outputs"
DUPLICATE = "duplicate example"
NO_EXAMPLE = "no usable example"
OVER_TOTAL = "over the total"


def reject_instruction(text: str, settings: SelfInstruct) -> str | None:
    """Return the reason to reject an instruction, similarity apart; None if it passes."""
    length = count_words(text)
    if length < settings.min_words:
        return TOO_SHORT
    if length > settings.max_words:
        return TOO_LONG
    if settings.blocked_words and blocked_pattern(settings.blocked_words).search(text):
        return BLOCKED_WORD
    if text.lower().startswith(tuple(start.lower() for start in settings.blocked_starts)):
        return BLOCKED_START
    return PUNCTUATION_START if text[0] in PUNCTUATION else None


def count_words(text: str) -> int:
    """Count words between spaces; each Chinese or Japanese character counts as one."""
    return len(IDEOGRAPH.sub(" x ", text).split())


@cache
def blocked_pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    """Match whole words; words of scripts without spaces match anywhere."""
    return re.compile("|".join(re.escape(w) if IDEOGRAPH.search(w) else rf"\b{re.escape(w)}\b" for w in words), re.I)


def reject_example(example: InstructionExample) -> str | None:
    """Return the reason to reject an example; None if it passes."""
    if not example.output:
        return NO_OUTPUT
    if example.input == example.output:
        return REPEATS_INPUT
    return ENDS_WITH_COLON if example.input.endswith((":", "：")) or example.output.endswith((":", "：")) else None


def filter_examples(
    examples: Sequence[InstructionExample],
) -> tuple[list[InstructionExample], list[tuple[str, InstructionExample]]]:
    """Split the examples of one instruction into those to keep and (reason, example) for the rejected ones.

    Two outputs for one input mean that the instruction is ambiguous, so all its examples are rejected.
    """
    kept: list[InstructionExample] = []
    rejected: list[tuple[str, InstructionExample]] = []
    for example in examples:
        reason = reject_example(example) or (DUPLICATE if example in kept else None)
        if reason:
            rejected.append((reason, example))
        else:
            kept.append(example)
    outputs: dict[str, set[str]] = {}
    for example in kept:
        if example.input:
            outputs.setdefault(example.input, set()).add(example.output)
    if any(len(different) > 1 for different in outputs.values()):
        return [], rejected + [(CONTRADICTION, example) for example in kept]
    return kept, rejected


tokens = UnicodeWords().tokenize
"""Split into lower-case words; each Chinese or Japanese character is one. English words are those of rouge-score."""


def rouge_l(a: Sequence[str], b: Sequence[str]) -> float:
    """2·LCS(a, b) / (|a| + |b|)     Lin 2004, https://aclanthology.org/W04-1013.

    The harmonic mean of precision and recall, in one division, so that a threshold is met exactly.
    """
    return 2 * lcs(position_bits(a), len(a), b) / (len(a) + len(b)) if a and b else 0.0


def position_bits(words: Iterable[str]) -> dict[str, int]:
    """Map each word to the positions where it occurs, as the bits of an integer."""
    bits: dict[str, int] = {}
    for position, word in enumerate(words):
        bits[word] = bits.get(word, 0) | 1 << position
    return bits


def lcs(bits: dict[str, int], length: int, words: Sequence[str]) -> int:
    """Length of the longest common subsequence; the bits of one integer hold a row of the table.

    Crochemore et al. 2001, https://doi.org/10.1016/S0020-0190(00)00214-7.
    """
    row = full = (1 << length) - 1
    for word in words:
        if matches := bits.get(word):
            row = ((row + (row & matches)) | (row & ~matches)) & full
    return length - row.bit_count()


class InstructionPool:
    """Instructions, indexed to find the one most similar to a new text."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self.texts: list[str] = []
        self._words: list[list[str]] = []
        self._lengths = array("q")
        self._holders: dict[tuple[str, int], array[int]] = {}
        """Instructions that contain a word for the n-th time, by (word, n)."""
        for text in texts:
            self.add_(text)

    def __len__(self) -> int:
        return len(self.texts)

    def add_(self, text: str) -> None:
        """Append an instruction."""
        words = tokens(text)
        for key in _numbered(words):
            self._holders.setdefault(key, array("q")).append(len(self.texts))
        self.texts.append(text)
        self._words.append(words)
        self._lengths.append(len(words))

    def truncate_(self, size: int) -> None:
        """Keep only the first `size` instructions."""
        while len(self.texts) > size:
            self.texts.pop()
            self._lengths.pop()
            for key in _numbered(self._words.pop()):
                self._holders[key].pop()

    def most_similar(self, text: str) -> tuple[float, str]:
        """Return the largest ROUGE-L of `text` with an instruction, and the first instruction that reaches it."""
        words = tokens(text)
        bounds = self._bounds(words)
        bits, best, best_row = position_bits(words), 0.0, -1
        for row in np.argsort(-bounds, kind="stable"):
            if bounds[row] < best or bounds[row] == 0:
                break  # no later row can be more similar
            other = self._words[row]
            value = 2 * lcs(bits, len(words), other) / (len(words) + len(other))
            if value > best or (value == best and row < best_row):
                best, best_row = value, int(row)
        return best, self.texts[best_row] if best_row >= 0 else ""

    def _bounds(self, words: list[str]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Upper bound of ROUGE-L with each instruction, (N,): all common words in the same order."""
        shared = np.zeros(len(self.texts), np.int64)
        for key in _numbered(words):
            if holders := self._holders.get(key):
                shared[np.frombuffer(holders, np.int64)] += 1
        lengths = np.frombuffer(self._lengths, np.int64) if self._lengths else shared
        return 2 * shared / np.maximum(len(words) + lengths, 1)


def _numbered(words: list[str]) -> list[tuple[str, int]]:
    """Pair each word with its number of earlier occurrences, so that a multiset becomes a set."""
    seen: Counter[str] = Counter()
    numbered = []
    for word in words:
        numbered.append((word, seen[word]))
        seen[word] += 1
    return numbered
