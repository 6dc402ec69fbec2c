"""How like an instruction is to all that there are: the largest ROUGE-L, found without comparing it with each."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from deltatune.tasks.written.rouge import AnyLetters

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
