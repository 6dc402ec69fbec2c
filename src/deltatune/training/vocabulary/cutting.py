"""How a tokenizer's model cuts: the pieces of a word, of a piece's own text, and what two pieces spell together."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer

from deltatune.core.errors import DeltatuneError

KINDS = "BPE", "Unigram", "WordPiece"
GUARD = "\ufdd0"
"""A character that no text has (Unicode keeps it free); it stands for the rest of a word around a piece."""


def spec_of(tokenizer: Any) -> dict[str, Any]:
    """The tokenizer as the content of its tokenizer.json. Raises DeltatuneError where it has none of our KINDS."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise DeltatuneError(
            f"{type(tokenizer).__name__} is written in Python and has no tokenizer.json; "
            "load a fast tokenizer with AutoTokenizer.from_pretrained"
        )
    spec: dict[str, Any] = json.loads(backend.to_str())
    kind = spec["model"]["type"]
    if kind not in KINDS:
        raise DeltatuneError(f"a vocabulary of kind {kind} cannot grow here; known kinds: {', '.join(KINDS)}")
    spec["model"].setdefault("merges", [])
    spec["model"]["merges"] = [
        tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in spec["model"]["merges"]
    ]
    return spec


def vocabulary_of(spec: dict[str, Any]) -> dict[str, int]:
    """Ids of the model's pieces; those of added tokens too, as far as the model itself has them."""
    vocab = spec["model"]["vocab"]
    if spec["model"]["type"] == "Unigram":
        return {piece: i for i, (piece, _) in enumerate(vocab)}
    return dict(vocab)


class Cutter:
    """The model of a tokenizer.json, asked directly: no normalizer, no splitting into words, no special tokens."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.kind: str = spec["model"]["type"]
        self.vocab = vocabulary_of(spec)
        # What a piece inside a word begins with, and what one at its end ends with ("##", "</w>").
        self.prefix: str = spec["model"].get("continuing_subword_prefix") or ""
        self.suffix: str = spec["model"].get("end_of_word_suffix") or ""
        self.unknown = _unknown(spec)
        # Holds the whole tokenizer: its model lives no longer than it does.
        self._tokenizer = Tokenizer.from_str(json.dumps(_bare(spec, self._guards())))

    def word(self, word: str) -> list[str]:
        """Pieces of a word, as the pre-tokenizer hands it on."""
        return [token.value for token in self._tokenizer.model.tokenize(word)]

    def pieces(self, piece: str) -> list[str]:
        """Pieces that the text of `piece` is cut into at the place in a word that the piece itself is for."""
        inside = bool(self.prefix) and piece.startswith(self.prefix) and piece != self.prefix
        text = piece.removeprefix(self.prefix) if inside else piece
        ends = bool(self.suffix) and text.endswith(self.suffix)
        text = text.removesuffix(self.suffix) if ends else text
        open_end = bool(self.suffix) and not ends
        found = self.word(GUARD * inside + text + GUARD * open_end)
        return found[int(inside) : len(found) - int(open_end)]

    def join(self, left: str, right: str) -> str:
        """The piece that `left` and `right` merge into."""
        return left + right.removeprefix(self.prefix)

    def characters(self, word: str) -> list[str]:
        """Single-character pieces that spell a word, each as its place in the word asks for."""
        last = len(word) - 1
        return [self.prefix * (i > 0) + char + self.suffix * (i == last) for i, char in enumerate(word)]

    def _guards(self) -> list[str]:
        forms = {GUARD, self.prefix + GUARD, GUARD + self.suffix, self.prefix + GUARD + self.suffix}
        return sorted(forms) if self.prefix or self.suffix else []


def _unknown(spec: dict[str, Any]) -> str | None:
    """Piece that stands for what the model cannot spell."""
    model = spec["model"]
    if model["type"] == "Unigram":
        return None if model["unk_id"] is None else str(model["vocab"][model["unk_id"]][0])
    found = model.get("unk_token")
    return None if found is None else str(found)


def _bare(spec: dict[str, Any], guards: list[str]) -> dict[str, Any]:
    """The model alone, without chance (`dropout`) and with the guards behind the vocabulary."""
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
