"""New tokens for a tokenizer, learned from texts: continued BPE or WordPiece training, or a second Unigram model."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from itertools import chain, repeat, starmap
from typing import Any

from tokenizers import Tokenizer, models, trainers

from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.training.tokenizer_extension.segmentation import (
    LONGEST,
    Segmenter,
    byte_level,
    count_words,
    is_boundary,
    missing_characters,
    spec_of,
)

UNKNOWN = "<unk>"
STEP = 1e-4
"""Difference between the scores of characters that the trainer would have pruned."""
ROUNDS = 3
"""Most trainings: the number of new pieces is known only after each."""


def new_pieces(
    words: Counter[str], segmenter: Segmenter, characters: list[str], size: int, min_count: int
) -> dict[str, float]:
    """At most `size` Unigram pieces that the tokenizer lacks, with log-probabilities: characters, then likely pieces.

    Only pieces that the second model itself uses for its texts, `min_count` times or more, are taken.
    """
    runs = _piece_runs(words, segmenter.vocab.keys() | set(characters))
    alphabet = len(set(chain.from_iterable(runs)))
    new: dict[str, float] = {}
    target = size
    for _ in range(ROUNDS if runs else 0):
        scores, used = _train(runs, alphabet + target)
        new = {
            piece: score
            for piece, score in scores.items()
            if piece not in segmenter.vocab and (piece in characters or used[piece] >= min_count)
        }
        if len(new) >= size or len(scores) < alphabet + target:  # enough, or there are no more
            break
        target += (size - len(new)) * 5 // 4 + 16
    first = [char for char in characters if char in new]
    rest = sorted(new.keys() - set(first), key=lambda piece: (-new[piece], piece))
    return {piece: new[piece] for piece in [*first, *rest][:size]}


def _piece_runs(words: Counter[str], alphabet: set[str]) -> Counter[str]:
    """Words, split where tokens may not span, and at characters that remain unknown."""
    runs: Counter[str] = Counter()
    for word, count in words.items():
        run = ""
        for char in word:
            if run and (char not in alphabet or is_boundary(run[-1], char)):
                runs[run] += count
                run = ""
            run += char if char in alphabet else ""
        runs[run] += count
    del runs[""]
    return runs


def _train(runs: Counter[str], size: int) -> tuple[dict[str, float], Counter[str]]:
    """Pieces and scores of a model of about `size` pieces, and how often each is used in the runs."""
    learner = Tokenizer(models.Unigram())
    trainer = trainers.UnigramTrainer(
        vocab_size=size + 1,
        show_progress=False,
        special_tokens=[UNKNOWN],
        unk_token=UNKNOWN,
        max_piece_length=LONGEST,
    )
    learner.train_from_iterator(chain.from_iterable(starmap(repeat, runs.items())), trainer)
    scores = dict(json.loads(learner.to_str())["model"]["vocab"])
    scores.pop(UNKNOWN, None)
    scores = _deterministic(scores, runs)
    return scores, _uses(scores, runs)


def _deterministic(scores: dict[str, float], runs: Counter[str]) -> dict[str, float]:
    """The same scores in every run: those of characters that the trainer would have pruned are assigned by count.

    The trainer keeps every character; it gives those the lowest score, and 0.0001 more for each in the order of a hash
    table, which differs between runs. Scores are rounded because their sums are not in a fixed order either.
    """
    counts: Counter[str] = Counter()
    for run, count in runs.items():
        for char in run:
            counts[char] += count
    scores = {piece: round(score, 9) for piece, score in scores.items()}
    ceiling = min(scores.values(), default=0.0) + STEP * (len(counts) + 1)
    low = sorted((p for p in scores if len(p) == 1 and scores[p] <= ceiling), key=lambda p: (-counts[p], p))
    return scores | dict(zip(low, sorted((scores[p] for p in low), reverse=True), strict=True))


def _uses(scores: dict[str, float], runs: Counter[str]) -> Counter[str]:
    """How often each piece is used in the most likely segmentations of the runs."""
    tokenize = models.Unigram([(UNKNOWN, 0.0), *sorted(scores.items())], unk_id=0).tokenize
    used: Counter[str] = Counter()
    for run, count in runs.items():
        for token in tokenize(run):
            used[token.value] += count
    return used


BYTE = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class LearnedTokens:
    """Tokens learned for one tokenizer, in the alphabet of its model."""

    kind: str
    """BPE, Unigram or WordPiece."""
    tokens: tuple[str, ...]
    """New pieces; the parts of a piece come before it."""
    merges: tuple[tuple[str, str], ...] = ()
    """BPE: pairs to merge, in order."""
    scores: tuple[float, ...] = ()
    """Unigram: log-probability of each token in the texts."""


def learn_tokens(texts: Iterable[str], tokenizer: Any, size: int, *, min_count: int = 2) -> LearnedTokens:
    """Learn at most `size` new tokens of the tokenizer's own kind from texts that it splits into many tokens.

    BPE (byte-level, or characters with byte fallback) and WordPiece continue the tokenizer's training: the texts are
    tokenized with it, and the most frequent pairs are merged, so that every new token is reachable (continued BPE
    training, Purason et al. 2025, https://arxiv.org/abs/2512.03989; tokens of a second, independent tokenizer often
    are not). Unigram trains a second model and takes the pieces that the first lacks (Chinese-LLaMA, Cui et al. 2023,
    https://arxiv.org/abs/2304.08177). Characters that the tokenizer lacks come first, the most frequent until 99.95 %
    of the text can be spelled. Tokens seen fewer than `min_count` times are not learned.

    The texts are read once; their distinct words are held in memory, so pass a sample of a large corpus. Raises
    DeltatuneError for texts without anything to learn and for tokenizers of other kinds.
    """
    spec = spec_of(tokenizer)
    sizes = {"size": size, "min_count": min_count}
    raise_all([f"{name}={value} is invalid; give 1 or more" for name, value in sizes.items() if value < 1])
    words = count_words(texts, tokenizer, spec)
    if not words:
        raise DeltatuneError("there is nothing to learn tokens from: the texts are empty")
    segmenter = Segmenter(spec)
    characters = missing_characters(words, segmenter, size, min_count)
    learned = _learn(words, segmenter, spec, characters, size, min_count)
    if not learned.tokens:
        raise DeltatuneError(
            f"there are no tokens to learn: nothing that occurs {min_count} times or more in the texts is split into "
            "several tokens; pass more texts, or a smaller min_count"
        )
    return learned


def _learn(
    words: Counter[str], segmenter: Segmenter, spec: dict[str, Any], characters: list[str], size: int, min_count: int
) -> LearnedTokens:
    if segmenter.kind == "Unigram":
        scores = new_pieces(words, segmenter, characters, size, min_count)
        return LearnedTokens("Unigram", tuple(scores), scores=tuple(scores.values()))
    if segmenter.kind == "WordPiece":
        return _learn_wordpieces(words, segmenter, spec, characters, size, min_count)
    tokens, merges = _continue_merging(words, segmenter, spec, characters, size, min_count)
    return LearnedTokens("BPE", tokens, merges)


def _continue_merging(
    words: Counter[str], segmenter: Segmenter, spec: dict[str, Any], characters: list[str], size: int, min_count: int
) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """New pieces and their merges, in the order of learning."""
    runs = _runs(words, Segmenter(with_pieces(spec, characters)), spec)
    # One character for each old piece: the trainer sees the old pieces as the letters of its words.
    letters = {piece: _letter(i) for i, piece in enumerate(sorted(set(chain.from_iterable(runs))))}
    pieces = {letter: piece for piece, letter in letters.items()}
    # Two merges to the same piece are two tokens for the trainer, so it learns more tokens than requested.
    trainer = trainers.BpeTrainer(
        vocab_size=len(letters) + size + size // 4 + 16,
        min_frequency=min_count,
        show_progress=False,
        max_token_length=LONGEST * (3 if byte_level(spec) else 1),
    )
    learner = Tokenizer(models.BPE())
    lines = ("".join(letters[piece] for piece in run) for run in runs)
    learner.train_from_iterator(chain.from_iterable(map(repeat, lines, runs.values())), trainer)
    tokens = dict.fromkeys(characters)
    merges: dict[tuple[str, str], None] = {}
    for pair in json.loads(learner.to_str())["model"]["merges"]:
        left, right = (reduce(segmenter.join, (pieces[letter] for letter in side)) for side in pair)
        merged = segmenter.join(left, right)
        if merged not in segmenter.vocab and merged not in tokens:
            if len(tokens) == size:
                break
            tokens[merged] = None
        merges[left, right] = None
    return tuple(tokens), tuple(merges)


def with_pieces(spec: dict[str, Any], pieces: Iterable[str]) -> dict[str, Any]:
    """The tokenizer with more pieces in the vocabulary of its model (BPE, WordPiece), with the next ids."""
    vocab = dict(spec["model"]["vocab"])
    start = max(vocab.values(), default=-1) + 1
    vocab |= {piece: start + i for i, piece in enumerate(pieces)}
    return {**spec, "model": {**spec["model"], "vocab": vocab}}


def _runs(words: Counter[str], segmenter: Segmenter, spec: dict[str, Any]) -> Counter[tuple[str, ...]]:
    """Runs of pieces that may be merged: the pieces of words, split at unknown text and where tokens may not span."""
    # A byte-level pre-tokenizer has split the words; sentencepiece's has not: split by script and kind of character.
    split = not byte_level(spec) and segmenter.kind == "BPE"
    digits = any(len(piece) > 1 and piece.isdecimal() for piece in segmenter.vocab)
    runs: Counter[tuple[str, ...]] = Counter()
    for word, count in words.items():
        run: list[str] = []
        for piece in _spelled(word, segmenter):
            if piece is None or (run and split and is_boundary(run[-1][-1], piece[0], digits)):
                runs[tuple(run)] += count
                run = []
            if piece is not None:
                run.append(piece)
        runs[tuple(run)] += count
    return Counter({run: count for run, count in runs.items() if len(run) > 1})


def _spelled(word: str, segmenter: Segmenter) -> Iterator[str | None]:
    """Pieces of a word, None for each that is unknown or a byte."""
    complete = segmenter.unknown is not None or all(form in segmenter.vocab for form in segmenter.characters(word))
    for piece in segmenter.word(word) if complete or _has_byte_fallback(segmenter) else ():
        yield None if piece == segmenter.unknown or BYTE.fullmatch(piece) else piece


def _has_byte_fallback(segmenter: Segmenter) -> bool:
    return "<0x00>" in segmenter.vocab


def _letter(i: int) -> str:
    """A character for the i-th piece, none of them a surrogate."""
    code = 0x100 + i
    return chr(code if code < 0xD800 else code + 0x800)


# ---- WordPiece


def _learn_wordpieces(
    words: Counter[str], segmenter: Segmenter, spec: dict[str, Any], characters: list[str], size: int, min_count: int
) -> LearnedTokens:
    """Twice as many pieces as requested, of which the most used ones stay.

    WordPiece takes the longest piece that fits, so the parts of a piece are not needed to reach it, and some parts are
    never used.
    """
    pieces, _ = _continue_merging(words, segmenter, spec, characters, 2 * size, min_count)
    trial = Segmenter(with_pieces(spec, pieces))
    used: Counter[str] = Counter()
    for word, count in words.items():
        for piece in trial.word(word):
            used[piece] += count
    order = {piece: i for i, piece in enumerate(pieces)}
    rest = [piece for piece in pieces[len(characters) :] if used[piece] >= min_count]
    best = sorted(rest, key=lambda piece: (-used[piece], order[piece]))[: size - len(characters)]
    return LearnedTokens("WordPiece", tuple(characters + sorted(best, key=order.__getitem__)))
