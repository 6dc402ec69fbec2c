"""What tokens are learnt from: words with their counts, characters that are lacking, places where words end."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import cache
from typing import Any

from tokenizers import pre_tokenizers

from deltatune.core.errors import DeltatuneError
from deltatune.training.vocabulary.cutting import Cutter

COVERAGE = 0.9995
"""Share of all characters that shall be tokens of their own, sentencepiece's `character_coverage`."""
LONGEST = 16
"""Characters of the longest new token, sentencepiece's `max_sentencepiece_length`."""
SPACE = "▁"
"""What stands for a space in sentencepiece's pieces."""
_SCRIPTS = pre_tokenizers.UnicodeScripts()


def count_words(texts: Iterable[str], tokenizer: Any, spec: dict[str, Any]) -> Counter[str]:
    """Words as the tokenizer's model gets them, with how often; added tokens in the texts are left out."""
    backend = tokenizer.backend_tokenizer
    names = sorted((token["content"] for token in spec["added_tokens"]), key=len, reverse=True)
    special = re.compile("|".join(map(re.escape, names))) if names else None
    words: Counter[str] = Counter()
    for i, text in enumerate([texts] if isinstance(texts, str) else texts):
        if not isinstance(text, str):
            raise DeltatuneError(f"text {i} is {type(text).__name__}, not str; pass texts, such as a column of a table")
        for part in special.split(text) if special else [text]:
            part = backend.normalizer.normalize_str(part) if backend.normalizer else part
            split = backend.pre_tokenizer.pre_tokenize_str(part) if backend.pre_tokenizer else [(part, None)]
            words.update(word for word, _ in split if word)
    return words


def missing_characters(words: Counter[str], cutter: Cutter, size: int, min_count: int) -> list[str]:
    """Characters to learn as tokens, the most frequent first, until COVERAGE of the words' characters are spelled."""
    seen: Counter[str] = Counter()
    for word, count in words.items():
        for form in cutter.characters(word):
            seen[form] += count
    total = sum(seen.values())
    covered = sum(count for form, count in seen.items() if form in cutter.vocab)
    chosen: list[str] = []
    for form, count in sorted(seen.items(), key=lambda item: (-item[1], item[0])):
        if len(chosen) == size or count < min_count or covered >= COVERAGE * total:
            break
        if form not in cutter.vocab:
            chosen.append(form)
            covered += count
    return chosen


def byte_level(spec: dict[str, Any]) -> bool:
    """Whether the pieces are of bytes, each shown as a letter."""
    return '"ByteLevel"' in json.dumps([spec["pre_tokenizer"], spec["decoder"]])


@cache
def words_part(left: str, right: str, digits: bool = True) -> bool:
    """Whether no token reaches over the place between two characters, as sentencepiece has it when it trains.

    A space begins a word; letters, numbers and signs are apart, and so are letters of two scripts. `digits=False`:
    every digit is alone.
    """
    if right == SPACE:
        return left != SPACE
    if left == SPACE or unicodedata.category(right)[0] == "M":
        return False
    kinds = _kind(left), _kind(right)
    if kinds[0] != kinds[1]:
        return True
    if kinds[0] == "N":
        return not digits
    return kinds[0] == "L" and len(_SCRIPTS.pre_tokenize_str(left + right)) > 1


def _kind(char: str) -> str:
    """L letters with their marks, N numbers, O everything else."""
    return {"L": "L", "M": "L", "N": "N"}.get(unicodedata.category(char)[0], "O")
