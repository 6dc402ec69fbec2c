"""New pieces for a Unigram tokenizer, from a second Unigram model of the new texts."""

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
    Cutter,
    byte_level,
    count_words,
    missing_characters,
    spec_of,
    words_part,
)

UNKNOWN = "<unk>"
STEP = 1e-4
"""Between the scores that the trainer gives to characters it keeps only because they are characters."""
ROUNDS = 3
"""Trainings at most: how many pieces are new is known only afterwards."""


def new_pieces(
    words: Counter[str], cutter: Cutter, characters: list[str], size: int, min_count: int
) -> dict[str, float]:
    """At most `size` pieces that the tokenizer lacks with their log-probabilities: characters first, then the likely.

    Only pieces count that the second model itself cuts its texts into, `min_count` times or more.
    """
    runs = _piece_runs(words, cutter.vocab.keys() | set(characters))
    alphabet = len(set(chain.from_iterable(runs)))
    new: dict[str, float] = {}
    wanted = size
    for _ in range(ROUNDS if runs else 0):
        found, used = _train(runs, alphabet + wanted)
        new = {
            piece: score
            for piece, score in found.items()
            if piece not in cutter.vocab and (piece in characters or used[piece] >= min_count)
        }
        if len(new) >= size or len(found) < alphabet + wanted:  # enough, or there are no more
            break
        wanted += (size - len(new)) * 5 // 4 + 16
    first = [char for char in characters if char in new]
    rest = sorted(new.keys() - set(first), key=lambda piece: (-new[piece], piece))
    return {piece: new[piece] for piece in [*first, *rest][:size]}


def _piece_runs(words: Counter[str], alphabet: set[str]) -> Counter[str]:
    """Words, parted where words end and at characters that shall stay unknown."""
    runs: Counter[str] = Counter()
    for word, count in words.items():
        run = ""
        for char in word:
            if run and (char not in alphabet or words_part(run[-1], char)):
                runs[run] += count
                run = ""
            run += char if char in alphabet else ""
        runs[run] += count
    del runs[""]
    return runs


def _train(runs: Counter[str], size: int) -> tuple[dict[str, float], Counter[str]]:
    """Pieces of a model of about `size` pieces with their scores, and how often each is used in the runs."""
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
    scores = _in_order(scores, runs)
    return scores, _uses(scores, runs)


def _in_order(scores: dict[str, float], runs: Counter[str]) -> dict[str, float]:
    """The scores, with those of characters that the trainer would have pruned handed out by their count.

    It keeps every character, and gives those the lowest score and 0.0001 more for each in the order of a hash table,
    which is another in every run. Rounded, as the sums behind the other scores are in no fixed order either.
    """
    seen: Counter[str] = Counter()
    for run, count in runs.items():
        for char in run:
            seen[char] += count
    scores = {piece: round(score, 9) for piece, score in scores.items()}
    ceiling = min(scores.values(), default=0.0) + STEP * (len(seen) + 1)
    low = sorted((p for p in scores if len(p) == 1 and scores[p] <= ceiling), key=lambda p: (-seen[p], p))
    return scores | dict(zip(low, sorted((scores[p] for p in low), reverse=True), strict=True))


def _uses(scores: dict[str, float], runs: Counter[str]) -> Counter[str]:
    """How often each piece is used in the likeliest cuts of the runs."""
    cut = models.Unigram([(UNKNOWN, 0.0), *sorted(scores.items())], unk_id=0).tokenize
    used: Counter[str] = Counter()
    for run, count in runs.items():
        for token in cut(run):
            used[token.value] += count
    return used


BYTE = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class Learned:
    """What `learn_tokens` found for one tokenizer, in the alphabet of its model."""

    kind: str
    """BPE, Unigram or WordPiece."""
    tokens: tuple[str, ...]
    """New pieces; those that others are made of come before them."""
    merges: tuple[tuple[str, str], ...] = ()
    """BPE: pairs to merge, in this order."""
    scores: tuple[float, ...] = ()
    """Unigram: log-probability of each token in the learnt texts."""


def learn_tokens(texts: Iterable[str], tokenizer: Any, size: int, *, min_count: int = 2) -> Learned:
    """Learn at most `size` new tokens of the tokenizer's own kind from texts that it cuts badly.

    BPE (byte-level, or characters with byte fallback) and WordPiece go on learning where the tokenizer stopped: the
    texts are cut with it, and what stands side by side most often is merged, so that every new token can be reached
    (continued BPE training, Purason et al. 2025, https://arxiv.org/abs/2512.03989; tokens of a second, independent
    tokenizer often cannot). Unigram trains a second model and takes the pieces that the first lacks (Chinese-LLaMA,
    Cui et al. 2023, https://arxiv.org/abs/2304.08177). Characters that the tokenizer lacks come first, the most
    frequent until 99.95 % of the text is spelled. What is seen fewer than `min_count` times is not learnt.

    The texts are read once; their different words are held in memory, so pass a sample of a large corpus.
    Raises DeltatuneError for texts that teach nothing and for tokenizers of other kinds.
    """
    spec = spec_of(tokenizer)
    sizes = {"size": size, "min_count": min_count}
    raise_all([f"{name}={value} cannot be; give 1 or more" for name, value in sizes.items() if value < 1])
    words = count_words(texts, tokenizer, spec)
    if not words:
        raise DeltatuneError("there is nothing to learn tokens from: the texts are empty")
    cutter = Cutter(spec)
    characters = missing_characters(words, cutter, size, min_count)
    learned = _learn(words, cutter, spec, characters, size, min_count)
    if not learned.tokens:
        raise DeltatuneError(
            f"there are no tokens to learn: nothing that the texts have {min_count} times or more is cut into several "
            "tokens; pass more texts, or a smaller min_count"
        )
    return learned


def _learn(
    words: Counter[str], cutter: Cutter, spec: dict[str, Any], characters: list[str], size: int, min_count: int
) -> Learned:
    if cutter.kind == "Unigram":
        found = new_pieces(words, cutter, characters, size, min_count)
        return Learned("Unigram", tuple(found), scores=tuple(found.values()))
    if cutter.kind == "WordPiece":
        return _learn_wordpieces(words, cutter, spec, characters, size, min_count)
    tokens, merges = _continue_merging(words, cutter, spec, characters, size, min_count)
    return Learned("BPE", tokens, merges)


def _continue_merging(
    words: Counter[str], cutter: Cutter, spec: dict[str, Any], characters: list[str], size: int, min_count: int
) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """New pieces and the merges that make them, in the order of learning."""
    runs = _runs(words, Cutter(with_pieces(spec, characters)), spec)
    # One character for each old piece: to the trainer, the old pieces are the letters that its words are spelled in.
    letters = {piece: _letter(i) for i, piece in enumerate(sorted(set(chain.from_iterable(runs))))}
    pieces = {letter: piece for piece, letter in letters.items()}
    # Two ways to make one piece are two tokens to the trainer, so it learns some more than are asked for.
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
        left, right = (reduce(cutter.join, (pieces[letter] for letter in side)) for side in pair)
        made = cutter.join(left, right)
        if made not in cutter.vocab and made not in tokens:
            if len(tokens) == size:
                break
            tokens[made] = None
        merges[left, right] = None
    return tuple(tokens), tuple(merges)


def with_pieces(spec: dict[str, Any], pieces: Iterable[str]) -> dict[str, Any]:
    """The tokenizer with more pieces in the vocabulary of its model (BPE, WordPiece), ids counting on."""
    vocab = dict(spec["model"]["vocab"])
    start = max(vocab.values(), default=-1) + 1
    vocab |= {piece: start + i for i, piece in enumerate(pieces)}
    return {**spec, "model": {**spec["model"], "vocab": vocab}}


def _runs(words: Counter[str], cutter: Cutter, spec: dict[str, Any]) -> Counter[tuple[str, ...]]:
    """Runs of pieces that may be merged: words, cut, and parted at what cannot be spelled and where words end."""
    # A byte-level pre-tokenizer has parted the words; sentencepiece's has not, and parts by script and kind instead.
    parted = not byte_level(spec) and cutter.kind == "BPE"
    digits = any(len(piece) > 1 and piece.isdecimal() for piece in cutter.vocab)
    runs: Counter[tuple[str, ...]] = Counter()
    for word, count in words.items():
        run: list[str] = []
        for piece in _spelled(word, cutter):
            if piece is None or (run and parted and words_part(run[-1][-1], piece[0], digits)):
                runs[tuple(run)] += count
                run = []
            if piece is not None:
                run.append(piece)
        runs[tuple(run)] += count
    return Counter({run: count for run, count in runs.items() if len(run) > 1})


def _spelled(word: str, cutter: Cutter) -> Iterator[str | None]:
    """Pieces of a word, None in place of what is unknown or spelled in bytes."""
    known = cutter.unknown is not None or all(form in cutter.vocab for form in cutter.characters(word))
    for piece in cutter.word(word) if known or _falls_back(cutter) else ():
        yield None if piece == cutter.unknown or BYTE.fullmatch(piece) else piece


def _falls_back(cutter: Cutter) -> bool:
    return "<0x00>" in cutter.vocab


def _letter(i: int) -> str:
    """A character for the i-th piece, none of them a surrogate."""
    code = 0x100 + i
    return chr(code if code < 0xD800 else code + 0x800)


# ---- WordPiece


def _learn_wordpieces(
    words: Counter[str], cutter: Cutter, spec: dict[str, Any], characters: list[str], size: int, min_count: int
) -> Learned:
    """Twice as many pieces as asked for, of which those that cut the words most often stay.

    The longest piece that fits is taken, so what pieces are made of is not needed to reach them and may never be used.
    """
    made, _ = _continue_merging(words, cutter, spec, characters, 2 * size, min_count)
    trial = Cutter(with_pieces(spec, made))
    used: Counter[str] = Counter()
    for word, count in words.items():
        for piece in trial.word(word):
            used[piece] += count
    order = {piece: i for i, piece in enumerate(made)}
    rest = [piece for piece in made[len(characters) :] if used[piece] >= min_count]
    best = sorted(rest, key=lambda piece: (-used[piece], order[piece]))[: size - len(characters)]
    return Learned("WordPiece", tuple(characters + sorted(best, key=order.__getitem__)))
