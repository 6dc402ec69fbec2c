"""Addition of learned tokens to a tokenizer; every old id keeps its meaning."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from deltatune.core.errors import DeltatuneError
from deltatune.training.tokenizer_extension.learn_tokens import LearnedTokens
from deltatune.training.tokenizer_extension.segmentation import Segmenter, spec_of, vocabulary_of


@dataclass(frozen=True)
class Extension:
    """Changes of a tokenizer by added tokens."""

    old_size: int
    """Number of ids before; the ids from this one on are new."""
    size: int
    """Number of ids now."""
    added: tuple[str, ...]
    """New tokens in the order of their ids, in the alphabet of the vocabulary."""
    merges: int
    """Number of new BPE merges."""
    dropped: tuple[str, ...]
    """Learned tokens that were left out, because their own text is tokenized into other tokens."""
    unchanged: float | None
    """Share of the known texts whose tokens do not change; None without known texts."""


def add_tokens(tokenizer: Any, learned: LearnedTokens, *, known_texts: Sequence[str] = ()) -> tuple[Any, Extension]:
    """A copy of the tokenizer with the learned tokens after its own, and what that changes.

    Every old id keeps its meaning; existing tokens are not added twice; special tokens, chat template and
    post-processor stay. New BPE merges come after the old ones and new Unigram scores are below the old ones, so most
    texts of the original language keep their tokens; `known_texts` are such texts, on which that is measured. Every
    added token is checked: its own text is tokenized into that token. Raises DeltatuneError for tokens that were
    learned with another tokenizer.
    """
    spec = spec_of(tokenizer)
    _check(spec, learned)
    new_spec, dropped = _reachable(_with_added_tokens(spec), learned)
    extended = copy.deepcopy(tokenizer)
    extended._tokenizer = Tokenizer.from_str(json.dumps(new_spec))
    old = _size(spec)
    added = sorted(((i, piece) for piece, i in vocabulary_of(new_spec).items() if i >= old))
    merges = len(new_spec["model"]["merges"]) - len(spec["model"]["merges"])
    same = [ids_of(tokenizer, text) == ids_of(extended, text) for text in known_texts]
    unchanged = sum(same) / len(same) if same else None
    pieces = tuple(piece for _, piece in added)
    return extended, Extension(old, _size(new_spec), pieces, merges, tuple(dropped), unchanged)


def tokens_per_character(tokenizer: Any, texts: Iterable[str]) -> float:
    """Number of tokens of the texts, without special tokens, divided by their number of characters."""
    tokens = characters = 0
    for text in texts:
        tokens += len(ids_of(tokenizer, text))
        characters += len(text)
    if not characters:
        raise DeltatuneError("tokens per character: the texts have no characters")
    return tokens / characters


def ids_of(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text without special tokens."""
    # verbose=False: the tokenizer would warn about texts longer than the model's input
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def _size(spec: dict[str, Any]) -> int:
    """One more than the highest id, added tokens included."""
    ids = [*vocabulary_of(spec).values(), *(token["id"] for token in spec["added_tokens"])]
    return max(ids, default=-1) + 1


def _check(spec: dict[str, Any], learned: LearnedTokens) -> None:
    kind = spec["model"]["type"]
    if learned.kind != kind:
        raise DeltatuneError(f"{learned.kind} tokens do not fit a {kind} tokenizer; learn them with this tokenizer")
    pieces = vocabulary_of(spec).keys() | set(learned.tokens)
    missing = [part for pair in learned.merges for part in pair if part not in pieces]
    if missing:
        raise DeltatuneError(
            f"these tokens were learned with another tokenizer: they are merged from {len(missing)} pieces that this "
            f"one lacks, such as {missing[0]!r}; call learn_tokens with this tokenizer"
        )


def _with_added_tokens(spec: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer with its added tokens in the model's vocabulary too.

    Added tokens often have the ids after the vocabulary, and new tokens get the ids after those. When the tokenizer is
    loaded again, added tokens that are not in the model's vocabulary would get the next free ids, which differ.
    """
    missing = [token for token in spec["added_tokens"] if token["content"] not in vocabulary_of(spec)]
    if not missing:
        return spec
    if spec["model"]["type"] != "Unigram":
        vocab = spec["model"]["vocab"] | {token["content"]: token["id"] for token in missing}
        return {**spec, "model": {**spec["model"], "vocab": vocab}}
    pieces = list(spec["model"]["vocab"])
    for token in sorted(missing, key=lambda token: token["id"]):
        if token["id"] != len(pieces):
            raise DeltatuneError(f"the added token {token['content']!r} has id {token['id']} instead of {len(pieces)}")
        pieces.append([token["content"], 0.0])
    return {**spec, "model": {**spec["model"], "vocab": pieces}}


def _reachable(spec: dict[str, Any], learned: LearnedTokens) -> tuple[dict[str, Any], list[str]]:
    """The tokenizer with the learned tokens that their own text is tokenized into, and the other learned tokens."""
    existing, old = vocabulary_of(spec), _size(spec)
    tokens = {token: i for i, token in enumerate(learned.tokens) if token not in existing}
    dropped: list[str] = []
    while True:
        new_spec = _with_tokens(spec, learned, tokens, old)
        segmenter = Segmenter(new_spec)
        unreachable = [token for token in tokens if segmenter.pieces(token) != [token]]
        if not unreachable:
            return new_spec, dropped
        dropped += unreachable
        for token in unreachable:  # tokens that are merged from it become unreachable in the next round
            del tokens[token]


def _with_tokens(spec: dict[str, Any], learned: LearnedTokens, tokens: dict[str, int], old: int) -> dict[str, Any]:
    """The tokenizer with these tokens, ids from `old` on, and with the merges among existing pieces."""
    model = dict(spec["model"])
    if learned.kind == "Unigram":
        # Scores keep their differences, and none is above the lowest old score.
        lowest = min((score for _, score in model["vocab"]), default=0.0)
        shift = lowest - max((learned.scores[i] for i in tokens.values()), default=0.0)
        model["vocab"] = [*model["vocab"], *([token, learned.scores[i] + shift] for token, i in tokens.items())]
        return {**spec, "model": model}
    model["vocab"] = model["vocab"] | {token: old + i for i, token in enumerate(tokens)}
    if learned.kind == "BPE":
        prefix = model.get("continuing_subword_prefix") or ""
        merges = dict.fromkeys(model["merges"])
        for left, right in learned.merges:
            merged = left + right.removeprefix(prefix)
            if {left, right, merged} <= model["vocab"].keys():
                merges.setdefault((left, right))
        model["merges"] = list(merges)
    return {**spec, "model": model}
