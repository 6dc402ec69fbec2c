"""Texts to words, as mteval-13a (and so sacrebleu) splits them."""

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
"""A letter or digit of any script; vowel signs are part of their word, which \\w does not know."""


def splitter(characters: bool = False) -> Callable[[str], list[str]]:
    """The function that splits a text: sacrebleu's 13a, or its zh, where each Chinese character is a word.

    Kana, which zh leaves together, are split one by one as well.
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
    kind: Any = TokenizerZh if characters else Tokenizer13a
    found: Callable[[str], str] = kind()
    return found


def ngrams(words: Sequence[str], longest: int) -> Counter[Words]:
    """How often each n-gram of 1 to `longest` words occurs."""
    return Counter(
        tuple(words[start : start + n]) for n in range(1, longest + 1) for start in range(len(words) - n + 1)
    )


def guess_characters(references: Iterable[Sequence[str]]) -> bool:
    """Whether a third of the letters or more are Chinese or Japanese, which are written without spaces."""
    letters = ideographs = 0
    for own in references:
        for text in own:
            letters += sum(map(str.isalpha, text))
            ideographs += len(IDEOGRAPH.findall(text))
    return letters > 0 and 3 * ideographs >= letters


def missing(package: str) -> DeltatuneError:
    """The error of a package that is not installed."""
    return DeltatuneError(f'this metric needs the package {package}: pip install "deltatune[metrics]"')


QUOTES = str.maketrans("‘’`“”", "''''\"")
TWO = ("can not", "gon na", "got ta", "wan na", "lem me", "gim me")
"""What single words are split into."""
JOINED = {one.replace(" ", ""): one for one in TWO}
TOKEN = re.compile(
    rf"""
    n't\b | '(?:s|m|d|re|ve|ll)\b                     # what contractions end with
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
    found = (part for word in TOKEN.findall(text) for part in JOINED.get(word, word).split())
    return [word for word in found if word not in DROPPED and word.strip("-.")]
