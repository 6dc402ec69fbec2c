"""Texts to words, as captions are split for CIDEr: by Stanford's tokenizer for English, without punctuation."""

from __future__ import annotations

import re

from deltatune.tasks.written.words import IDEOGRAPH, LETTER

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
