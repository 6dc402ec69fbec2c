"""Segmentation of words by a tokenizer's model: pieces of a word, of a piece's own text, and merges of two pieces."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import cache
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers

from deltatune.core.errors import DeltatuneError

KINDS = "BPE", "Unigram", "WordPiece"
GUARD = "\ufdd0"
"""A character that no text contains (a Unicode noncharacter); it stands for the rest of a word around a piece."""


def spec_of(tokenizer: Any) -> dict[str, Any]:
    """The content of the tokenizer's tokenizer.json. Raises DeltatuneError for a model of none of the KINDS."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise DeltatuneError(
            f"{type(tokenizer).__name__} is written in Python and has no tokenizer.json; "
            "load a fast tokenizer with AutoTokenizer.from_pretrained"
        )
    spec: dict[str, Any] = json.loads(backend.to_str())
    kind = spec["model"]["type"]
    if kind not in KINDS:
        raise DeltatuneError(f"a {kind} vocabulary cannot be extended; supported kinds: {', '.join(KINDS)}")
    spec["model"].setdefault("merges", [])
    spec["model"]["merges"] = [
        tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in spec["model"]["merges"]
    ]
    return spec


def vocabulary_of(spec: dict[str, Any]) -> dict[str, int]:
    """Ids of the model's pieces, and of those added tokens that the model itself contains."""
    vocab = spec["model"]["vocab"]
    if spec["model"]["type"] == "Unigram":
        return {piece: i for i, (piece, _) in enumerate(vocab)}
    return dict(vocab)


class Segmenter:
    """The model of a tokenizer.json alone: no normalizer, no splitting into words, no special tokens."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.kind: str = spec["model"]["type"]
        self.vocab = vocabulary_of(spec)
        # Prefix of a piece inside a word, and suffix of a piece at its end ("##", "</w>").
        self.prefix: str = spec["model"].get("continuing_subword_prefix") or ""
        self.suffix: str = spec["model"].get("end_of_word_suffix") or ""
        self.unknown = _unknown(spec)
        # A reference to the whole tokenizer: its model is freed with it.
        self._tokenizer = Tokenizer.from_str(json.dumps(_model_only(spec, self._guards())))

    def word(self, word: str) -> list[str]:
        """Pieces of a word, as the pre-tokenizer returns it."""
        return [token.value for token in self._tokenizer.model.tokenize(word)]

    def pieces(self, piece: str) -> list[str]:
        """Pieces that the text of `piece` is split into at the position in a word that the piece itself is for."""
        inside = bool(self.prefix) and piece.startswith(self.prefix) and piece != self.prefix
        text = piece.removeprefix(self.prefix) if inside else piece
        ends = bool(self.suffix) and text.endswith(self.suffix)
        text = text.removesuffix(self.suffix) if ends else text
        open_end = bool(self.suffix) and not ends
        pieces = self.word(GUARD * inside + text + GUARD * open_end)
        return pieces[int(inside) : len(pieces) - int(open_end)]

    def join(self, left: str, right: str) -> str:
        """The piece that `left` and `right` merge into."""
        return left + right.removeprefix(self.prefix)

    def characters(self, word: str) -> list[str]:
        """Single-character pieces that spell a word, each in the form for its position in the word."""
        last = len(word) - 1
        return [self.prefix * (i > 0) + char + self.suffix * (i == last) for i, char in enumerate(word)]

    def _guards(self) -> list[str]:
        forms = {GUARD, self.prefix + GUARD, GUARD + self.suffix, self.prefix + GUARD + self.suffix}
        return sorted(forms) if self.prefix or self.suffix else []


def _unknown(spec: dict[str, Any]) -> str | None:
    """Piece for text that the model cannot spell."""
    model = spec["model"]
    if model["type"] == "Unigram":
        return None if model["unk_id"] is None else str(model["vocab"][model["unk_id"]][0])
    token = model.get("unk_token")
    return None if token is None else str(token)


def _model_only(spec: dict[str, Any], guards: list[str]) -> dict[str, Any]:
    """The model alone, without BPE dropout, and with the guards after the vocabulary."""
    model = dict(spec["model"])
    if model["type"] == "BPE":
        model["dropout"] = None
    if model["type"] != "BPE":
        model.pop("merges", None)
    if guards:
        start = max(model["vocab"].values(), default=-1) + 1
        model["vocab"] = model["vocab"] | {guard: start + i for i, guard in enumerate(guards)}
    parts = "truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"
    return {"version": "1.0", **dict.fromkeys(parts), "added_tokens": [], "model": model}


COVERAGE = 0.9995
"""Share of all characters that should be tokens, sentencepiece's `character_coverage`."""
LONGEST = 16
"""Characters of the longest new token, sentencepiece's `max_sentencepiece_length`."""
SPACE = "▁"
"""The character for a space in sentencepiece's pieces."""
_SCRIPTS = pre_tokenizers.UnicodeScripts()


def count_words(texts: Iterable[str], tokenizer: Any, spec: dict[str, Any]) -> Counter[str]:
    """Words as the tokenizer's model gets them, with their counts; added tokens in the texts are left out."""
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


def missing_characters(words: Counter[str], segmenter: Segmenter, size: int, min_count: int) -> list[str]:
    """Characters to learn as tokens, the most frequent first, until COVERAGE of all characters can be spelled."""
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for form in segmenter.characters(word):
            counts[form] += count
    total = sum(counts.values())
    covered = sum(count for form, count in counts.items() if form in segmenter.vocab)
    chosen: list[str] = []
    for form, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if len(chosen) == size or count < min_count or covered >= COVERAGE * total:
            break
        if form not in segmenter.vocab:
            chosen.append(form)
            covered += count
    return chosen


def byte_level(spec: dict[str, Any]) -> bool:
    """Whether pieces consist of bytes, each represented by a letter."""
    return '"ByteLevel"' in json.dumps([spec["pre_tokenizer"], spec["decoder"]])


@cache
def is_boundary(left: str, right: str, digits: bool = True) -> bool:
    """Whether no token may span the position between two characters; sentencepiece trains by the same rule.

    A space begins a word; letters, numbers and other signs are separate, and so are letters of different scripts.
    `digits=False`: every digit is separate.
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
