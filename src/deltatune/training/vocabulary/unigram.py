"""New pieces for a Unigram tokenizer, from a second Unigram model of the new texts."""

from __future__ import annotations

import json
from collections import Counter
from itertools import chain, repeat, starmap

from tokenizers import Tokenizer, models, trainers

from deltatune.training.vocabulary.cutting import Cutter
from deltatune.training.vocabulary.spelling import LONGEST, words_part

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
    runs = _runs(words, cutter.vocab.keys() | set(characters))
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


def _runs(words: Counter[str], alphabet: set[str]) -> Counter[str]:
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
