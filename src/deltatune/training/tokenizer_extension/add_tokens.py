"""Learnt tokens behind a tokenizer's own: every old id keeps its meaning."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from deltatune.core.errors import DeltatuneError
from deltatune.training.tokenizer_extension.learn_tokens import Learned
from deltatune.training.tokenizer_extension.segmentation import Cutter, spec_of, vocabulary_of


@dataclass(frozen=True)
class Growth:
    """What a merge did to a tokenizer."""

    old_size: int
    """Ids before; the ids from here on are new."""
    size: int
    """Ids now."""
    added: tuple[str, ...]
    """New tokens in the order of their ids, as the vocabulary spells them."""
    merges: int
    """New merges (BPE)."""
    dropped: tuple[str, ...]
    """Learnt tokens that were left out: their own text would be cut into others."""
    unchanged: float | None
    """Share of the probe texts that are cut exactly as before; None without probes."""


def merge(tokenizer: Any, learned: Learned, *, probes: Sequence[str] = ()) -> tuple[Any, Growth]:
    """A tokenizer with the learnt tokens behind its own, and what that changes; `tokenizer` itself stays as it is.

    Every old id keeps its meaning; what exists is not added twice; special tokens, chat template and post-processor
    stay. BPE merges come after the old ones, Unigram scores lie below the old ones, so that texts the tokenizer knew
    are mostly cut as before: `probes`, texts of that sort, measure it. Every added token is checked: its own text is
    that token. Raises DeltatuneError for tokens learnt with another tokenizer.
    """
    spec = spec_of(tokenizer)
    _check(spec, learned)
    grown, dropped = _reachable(_filled(spec), learned)
    merged = copy.deepcopy(tokenizer)
    merged._tokenizer = Tokenizer.from_str(json.dumps(grown))
    old = _size(spec)
    added = sorted(((i, piece) for piece, i in vocabulary_of(grown).items() if i >= old))
    merges = len(grown["model"]["merges"]) - len(spec["model"]["merges"])
    same = [ids_of(tokenizer, text) == ids_of(merged, text) for text in probes]
    share = sum(same) / len(same) if same else None
    return merged, Growth(old, _size(grown), tuple(piece for _, piece in added), merges, tuple(dropped), share)


def tokens_per_character(tokenizer: Any, texts: Iterable[str]) -> float:
    """Tokens that texts take, special tokens aside, divided by their characters: the lower, the cheaper to read."""
    tokens = characters = 0
    for text in texts:
        tokens += len(ids_of(tokenizer, text))
        characters += len(text)
    if not characters:
        raise DeltatuneError("tokens per character: the texts have no characters")
    return tokens / characters


def ids_of(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text without special tokens."""
    # verbose=False: the tokenizer would warn of texts longer than its model
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def _size(spec: dict[str, Any]) -> int:
    """One more than the highest id, added tokens included."""
    ids = [*vocabulary_of(spec).values(), *(token["id"] for token in spec["added_tokens"])]
    return max(ids, default=-1) + 1


def _check(spec: dict[str, Any], learned: Learned) -> None:
    kind = spec["model"]["type"]
    if learned.kind != kind:
        raise DeltatuneError(f"tokens of kind {learned.kind} do not fit a {kind} tokenizer; learn them with this one")
    known = vocabulary_of(spec).keys() | set(learned.tokens)
    lost = [part for pair in learned.merges for part in pair if part not in known]
    if lost:
        raise DeltatuneError(
            f"these tokens were learnt with another tokenizer: they are made of {len(lost)} pieces that this one "
            f"lacks, such as {lost[0]!r}; call learn_tokens with this tokenizer"
        )


def _filled(spec: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer with its added tokens in the model's vocabulary too, where ids without a piece would be holes.

    Added tokens often have the ids behind the vocabulary. New tokens come behind those; read again, the tokenizer
    would give added tokens that the model does not know the next free ids, which are others.
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
            raise DeltatuneError(f"the added token {token['content']!r} has id {token['id']}; {len(pieces)} was due")
        pieces.append([token["content"], 0.0])
    return {**spec, "model": {**spec["model"], "vocab": pieces}}


def _reachable(spec: dict[str, Any], learned: Learned) -> tuple[dict[str, Any], list[str]]:
    """The tokenizer with those learnt tokens that their own text is cut into, and the others."""
    known, old = vocabulary_of(spec), _size(spec)
    keep = {token: i for i, token in enumerate(learned.tokens) if token not in known}
    dropped: list[str] = []
    while True:
        grown = _grown(spec, learned, keep, old)
        cutter = Cutter(grown)
        lost = [token for token in keep if cutter.pieces(token) != [token]]
        if not lost:
            return grown, dropped
        dropped += lost
        for token in lost:  # what is made of it is lost with it, and found so in the next round
            del keep[token]


def _grown(spec: dict[str, Any], learned: Learned, keep: dict[str, int], old: int) -> dict[str, Any]:
    """The tokenizer with the kept tokens, ids from `old` on, and the merges among pieces that are there."""
    model = dict(spec["model"])
    if learned.kind == "Unigram":
        # As likely among each other as in their texts, and none likelier than the least likely old piece.
        lowest = min((score for _, score in model["vocab"]), default=0.0)
        shift = lowest - max((learned.scores[i] for i in keep.values()), default=0.0)
        model["vocab"] = [*model["vocab"], *([token, learned.scores[i] + shift] for token, i in keep.items())]
        return {**spec, "model": model}
    model["vocab"] = model["vocab"] | {token: old + i for i, token in enumerate(keep)}
    if learned.kind == "BPE":
        cutter_prefix = model.get("continuing_subword_prefix") or ""
        there = dict.fromkeys(model["merges"])
        for left, right in learned.merges:
            made = left + right.removeprefix(cutter_prefix)
            if {left, right, made} <= model["vocab"].keys():
                there.setdefault((left, right))
        model["merges"] = list(there)
    return {**spec, "model": model}
