"""Tokenizers of the generation metrics: mteval-13a, Chinese characters, and the words of captions."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from deltatune.core.errors import DeltatuneError

Words = tuple[str, ...]

IDEOGRAPH = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f]")
"""Han characters and kana: scripts without spaces. (Korean has spaces.)"""
MARKS = "".join(mark for mark in map(chr, range(0x300, 0x2000)) if unicodedata.category(mark).startswith("M"))
LETTER = rf"(?:[^\W_]|[{MARKS}])"
"""A letter or digit of any script; vowel signs are part of their word, which \\w does not match."""


def splitter(characters: bool = False) -> Callable[[str], list[str]]:
    """A function from a text to its words: sacrebleu's 13a, or its zh, in which each Chinese character is a word.

    Kana, which zh does not split, are words of one character too.
    """
    tokenizer = sacrebleu_tokenizer(characters)
    if characters:
        return lambda text: IDEOGRAPH.sub(r" \g<0> ", tokenizer(text.rstrip())).split()
    return lambda text: tokenizer(text.rstrip()).split()


def sacrebleu_tokenizer(characters: bool) -> Callable[[str], str]:
    """The tokenizer that sacrebleu calls "13a" or "zh"."""
    try:
        from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
        from sacrebleu.tokenizers.tokenizer_zh import TokenizerZh
    except ImportError as error:
        raise missing("sacrebleu") from error
    tokenizer: Any = TokenizerZh if characters else Tokenizer13a
    split: Callable[[str], str] = tokenizer()
    return split


def ngrams(words: Sequence[str], longest: int) -> Counter[Words]:
    """How often each n-gram of 1 to `longest` words occurs."""
    return Counter(
        tuple(words[start : start + n]) for n in range(1, longest + 1) for start in range(len(words) - n + 1)
    )


def guess_characters(references: Iterable[Sequence[str]]) -> bool:
    """Whether at least a third of the letters are Chinese or Japanese, which are written without spaces."""
    letters = ideographs = 0
    for row in references:
        for text in row:
            letters += sum(map(str.isalpha, text))
            ideographs += len(IDEOGRAPH.findall(text))
    return letters > 0 and 3 * ideographs >= letters


def missing(package: str) -> DeltatuneError:
    """The error for a package that is not installed."""
    return DeltatuneError(f'this metric needs the package {package}: pip install "deltatune[metrics]"')


QUOTES = str.maketrans("‘’`“”", "''''\"")
TWO = ("can not", "gon na", "got ta", "wan na", "lem me", "gim me")
"""Contractions as two words."""
JOINED = {pair.replace(" ", ""): pair for pair in TWO}
TOKEN = re.compile(
    rf"""
    n't\b | '(?:s|m|d|re|ve|ll)\b                     # endings of contractions
    | '\d\ds\b                                        # '90s
    | (?:[^\W\d_]\.){{2,}}                            # u.s., a.m.
    | \d+(?:[.,:/-]\d+)+(?!{LETTER})                  # 3.50, 1,000, 10:30, 1/2, 20-25
    | (?:(?!n't\b){LETTER})+                          # a word up to its n't ...
      (?:[-/&](?:(?!n't\b){LETTER})+                  # ... joined by hyphens, strokes and &
      |'(?!(?:s|m|d|re|ve|ll|t)\b){LETTER}+)*         # ... or by an apostrophe: o'neill
    | [!?]{{2,}} | \.{{2,}} | -+ | \S
    """,
    re.VERBOSE,
)
DROPPED = frozenset(".?!,:;'\"-–—…。，、；：？！「」『』《》“”")


def caption_words(text: str, characters: bool = False) -> list[str]:
    """Lower-case words; with `characters`, each Chinese or Japanese character is one."""
    text = text.lower().translate(QUOTES)
    if characters:
        text = IDEOGRAPH.sub(r" \g<0> ", text)
    words = (part for word in TOKEN.findall(text) for part in JOINED.get(word, word).split())
    return [word for word in words if word not in DROPPED and word.strip("-.")]
