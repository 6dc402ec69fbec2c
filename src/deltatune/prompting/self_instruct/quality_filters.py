"""What is not kept, and why: the rules of Self-Instruct and Alpaca."""

from __future__ import annotations

import re
import string
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np

from deltatune.prompting.self_instruct.seed_tasks import Example
from deltatune.prompting.self_instruct.self_instruct_settings import SelfInstruct
from deltatune.tasks.metrics.generation.rouge import AnyLetters
from deltatune.tasks.metrics.generation.tokenizers import IDEOGRAPH

PUNCTUATION = frozenset(string.punctuation + "。，、；：！？…")

CUT_OFF = "cut off"
MALFORMED = "not in the form"
TOO_SHORT = "too short"
TOO_LONG = "too long"
AVOIDED_WORD = "asks for what text cannot do"
AVOIDED_START = "begins as it must not"
ODD_START = "begins with punctuation"
TOO_SIMILAR = "too similar"
NO_OUTPUT = "no output"
REPEATS_INPUT = "output repeats the input"
ENDS_OPEN = "ends with a colon"
CONTRADICTION = "one input, several outputs"
DUPLICATE = "example written twice"
NO_EXAMPLE = "no usable example"
OVER = "more than the total"


def refuse_instruction(text: str, settings: SelfInstruct) -> str | None:
    """Why an instruction is not kept, whatever the others are; None if nothing speaks against it."""
    length = words(text)
    if length < settings.shortest:
        return TOO_SHORT
    if length > settings.longest:
        return TOO_LONG
    if settings.avoid and avoided(settings.avoid).search(text):
        return AVOIDED_WORD
    if text.lower().startswith(tuple(start.lower() for start in settings.avoid_starts)):
        return AVOIDED_START
    return ODD_START if text[0] in PUNCTUATION else None


def words(text: str) -> int:
    """Words between spaces; each Chinese or Japanese character counts as one."""
    return len(IDEOGRAPH.sub(" x ", text).split())


@cache
def avoided(names: tuple[str, ...]) -> re.Pattern[str]:
    """Finds whole words, and words of scripts without spaces anywhere."""
    return re.compile("|".join(re.escape(n) if IDEOGRAPH.search(n) else rf"\b{re.escape(n)}\b" for n in names), re.I)


def refuse_example(example: Example) -> str | None:
    """Why an example is not kept; None if nothing speaks against it."""
    if not example.output:
        return NO_OUTPUT
    if example.input == example.output:
        return REPEATS_INPUT
    return ENDS_OPEN if example.input.endswith((":", "：")) or example.output.endswith((":", "：")) else None


def sift(examples: Sequence[Example]) -> tuple[list[Example], list[tuple[str, Example]]]:
    """The examples to keep of one instruction, and the others with the reason.

    Two outputs for one input mean that the instruction is not clear, so none of its examples is kept.
    """
    kept: list[Example] = []
    refused: list[tuple[str, Example]] = []
    for example in examples:
        reason = refuse_example(example) or (DUPLICATE if example in kept else None)
        if reason:
            refused.append((reason, example))
        else:
            kept.append(example)
    outputs: dict[str, set[str]] = {}
    for example in kept:
        if example.input:
            outputs.setdefault(example.input, set()).add(example.output)
    if any(len(found) > 1 for found in outputs.values()):
        return [], refused + [(CONTRADICTION, example) for example in kept]
    return kept, refused


tokens = AnyLetters().tokenize
"""Lower-case words; each Chinese or Japanese character is one. In plain English the words that rouge-score has."""


def rouge_l(a: Sequence[str], b: Sequence[str]) -> float:
    """2·LCS(a, b) / (|a| + |b|)     Lin 2004, https://aclanthology.org/W04-1013.

    The harmonic mean of precision and recall, in one division, so that a threshold is met exactly.
    """
    return 2 * lcs(places(a), len(a), b) / (len(a) + len(b)) if a and b else 0.0


def places(words: Iterable[str]) -> dict[str, int]:
    """Where each word stands, as the bits of a number."""
    found: dict[str, int] = {}
    for at, word in enumerate(words):
        found[word] = found.get(word, 0) | 1 << at
    return found


def lcs(where: dict[str, int], length: int, words: Sequence[str]) -> int:
    """Length of the longest common subsequence, a row of the table at a time in the bits of one number.

    Crochemore et al. 2001, https://doi.org/10.1016/S0020-0190(00)00214-7.
    """
    row = full = (1 << length) - 1
    for word in words:
        if at := where.get(word):
            row = ((row + (row & at)) | (row & ~at)) & full
    return length - row.bit_count()


class Pool:
    """Instructions, and the one of them that a new one is most like."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self.texts: list[str] = []
        self._words: list[list[str]] = []
        self._lengths = array("q")
        self._holders: dict[tuple[str, int], array[int]] = {}
        """The instructions with a word for the n-th time."""
        for text in texts:
            self.add_(text)

    def __len__(self) -> int:
        return len(self.texts)

    def add_(self, text: str) -> None:
        """One instruction more."""
        words = tokens(text)
        for key in _numbered(words):
            self._holders.setdefault(key, array("q")).append(len(self.texts))
        self.texts.append(text)
        self._words.append(words)
        self._lengths.append(len(words))

    def cut_(self, size: int) -> None:
        """Only the first `size` instructions."""
        while len(self.texts) > size:
            self.texts.pop()
            self._lengths.pop()
            for key in _numbered(self._words.pop()):
                self._holders[key].pop()

    def most_similar(self, text: str) -> tuple[float, str]:
        """The largest ROUGE-L of `text` with an instruction, and that one: the first, where several are as like."""
        words = tokens(text)
        bounds = self._bounds(words)
        where, best, at = places(words), 0.0, -1
        for row in np.argsort(-bounds, kind="stable"):
            if bounds[row] < best or bounds[row] == 0:
                break  # no later one can be as like
            own = self._words[row]
            value = 2 * lcs(where, len(words), own) / (len(words) + len(own))
            if value > best or (value == best and row < at):
                best, at = value, int(row)
        return best, self.texts[at] if at >= 0 else ""

    def _bounds(self, words: list[str]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """For each instruction a number that ROUGE-L cannot exceed: with all common words in one order, (N,)."""
        shared = np.zeros(len(self.texts), np.int64)
        for key in _numbered(words):
            if holders := self._holders.get(key):
                shared[np.frombuffer(holders, np.int64)] += 1
        lengths = np.frombuffer(self._lengths, np.int64) if self._lengths else shared
        return 2 * shared / np.maximum(len(words) + lengths, 1)


def _numbered(words: list[str]) -> list[tuple[str, int]]:
    """Each word with how often it stood before: a bag as a set."""
    seen: Counter[str] = Counter()
    found = []
    for word in words:
        found.append((word, seen[word]))
        seen[word] += 1
    return found
