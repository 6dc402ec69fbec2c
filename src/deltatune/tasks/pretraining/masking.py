"""Masked tokens, and masked words, phrases or entities: what a masked language model is trained on.

BERT, Devlin et al. 2018, https://arxiv.org/abs/1810.04805; whole words for Chinese, Cui et al. 2019,
https://arxiv.org/abs/1906.08101; phrases and entities, ERNIE, Sun et al. 2019, https://arxiv.org/abs/1904.09223
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from transformers import BatchEncoding, PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError
from deltatune.tasks.pretraining.random_draws import fractions, integer, order
from deltatune.tasks.task import IGNORED

Unit = list[int]
"""Places (0 to T - 1) of the tokens that are chosen together: a word, a phrase, an entity."""

Choose = Literal["count", "each"]
"""How units are chosen: `count`, until round(rate * T) tokens are (BERT); `each`, every one with probability `rate`
(Hugging Face's collator and Baidu's ERNIE)."""

SHARES = (0.8, 0.1, 0.1)
"""Of the chosen tokens: how many become the mask token, how many a random token, how many stay."""


def mask_tokens(
    ids: Sequence[int],
    special: Sequence[bool | int],
    generator: torch.Generator,
    *,
    mask_id: int,
    vocabulary: int | Sequence[int],
    rate: float = 0.15,
    shares: tuple[float, ...] = SHARES,
    units: Sequence[Unit] | None = None,
    choose: Choose = "count",
    alike: bool = False,
) -> tuple[list[int], list[int]]:
    """Choose about `rate` of the tokens and hide most of them; returns the inputs (T,) and the labels (T,).

    Labels are the tokens that stood at the chosen places and IGNORED elsewhere. `special` (T,) marks tokens that are
    never chosen. By `count`, T includes them, as in BERT's code, and at least one token is chosen. Without `units`
    each token is one; with them tokens outside all units are not chosen, units are taken whole in random order, and one
    that exceeds what is left of the number is passed over. Where none fits (a short text of long words) the shortest
    is taken: BERT's code would leave such a text without labels.

    Of the chosen tokens `shares` become `mask_id`, a random token or stay, decided for each token on its own (as BERT
    and ERNIE do, for words and entities too) or, `alike`, once for a unit. `vocabulary` is what random tokens are drawn
    from: a size (ids 0 to size - 1, special ones included, as in BERT) or ids.
    """
    _check(ids, special, rate, shares, units)
    candidates = [[place] for place in range(len(ids))] if units is None else units
    candidates = [list(unit) for unit in candidates if unit and not any(special[place] for place in unit)]
    if choose == "each":
        drawn = fractions(len(candidates), generator)
        chosen = [unit for unit, at in zip(candidates, drawn, strict=True) if at < rate]
    else:
        chosen = within(candidates, max(1, round(rate * len(ids))), generator)
    inputs, labels = list(ids), [IGNORED] * len(ids)
    for unit in chosen:
        drawn = fractions(1, generator) * len(unit) if alike else fractions(len(unit), generator)
        for place, at in zip(unit, drawn, strict=True):
            labels[place] = ids[place]
            if at < shares[0]:
                inputs[place] = mask_id
            elif at < shares[0] + shares[1]:
                inputs[place] = random_token(vocabulary, generator)
    return inputs, labels


def within(units: Sequence[Unit], budget: int, generator: torch.Generator) -> list[Unit]:
    """Units in random order while they fit a budget of tokens; the shortest one where none fits."""
    if not units:
        return []
    left, chosen = budget, []
    for at in order(len(units), generator):
        if len(units[at]) <= left:
            chosen.append(units[at])
            left -= len(units[at])
        if left == 0:
            break
    return chosen or [min(units, key=len)]


def random_token(vocabulary: int | Sequence[int], generator: torch.Generator) -> int:
    """One id, uniformly."""
    if isinstance(vocabulary, int):
        return integer(0, vocabulary - 1, generator)
    return vocabulary[integer(0, len(vocabulary) - 1, generator)]


def _check(
    ids: Sequence[int],
    special: Sequence[bool | int],
    rate: float,
    shares: tuple[float, ...],
    units: Sequence[Unit] | None,
) -> None:
    if len(special) != len(ids):
        raise DeltatuneError(f"special says {len(special)} times whether a token is special, of {len(ids)} tokens")
    check_rate(rate, shares)
    places = [place for unit in units or () for place in unit]
    if len(set(places)) < len(places):
        twice = next(place for place in places if places.count(place) > 1)
        raise DeltatuneError(f"token {twice} belongs to two units; every token may belong to one")
    if places and not (min(places) >= 0 and max(places) < len(ids)):
        raise DeltatuneError(f"units name token {max(places)}; there are tokens 0 to {len(ids) - 1}")


def check_rate(rate: float, shares: tuple[float, ...]) -> None:
    """Raise DeltatuneError for a rate outside (0, 1] and shares that are no distribution."""
    if not 0 < rate <= 1:
        raise DeltatuneError(f"rate={rate} must be more than 0 and at most 1: it is the share of tokens that is chosen")
    if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise DeltatuneError(f"shares={shares} must be three shares (masked, random, kept) that sum to 1")


BEGINNINGS = ("▁", "Ġ")
"""What SentencePiece and byte-level BPE put before a piece that begins a word."""
CONTINUATION = "##"
"""What WordPiece puts before a piece that does not."""


def words_of(encoding: BatchEncoding, tokenizer: PreTrainedTokenizerBase) -> list[list[Unit]]:
    """The words of each encoded text or pair, as places of their tokens; special tokens belong to none.

    Words are what the tokenizer splits at before it makes pieces (`word_ids`), and a piece marked as a beginning (▁, Ġ)
    begins another one. Where it splits at nothing (SentencePiece without a pre-tokenizer) the marks alone tell. So BERT
    has punctuation and Chinese characters apart, GPT-2 has punctuation apart, and T5 and Llama leave it at the word
    before. For words of Chinese give a segmentation: `places_of` and `units_at`.
    """
    rows: list[list[int]] = encoding["input_ids"]
    if not tokenizer.is_fast:
        return words_by_marks(rows, tokenizer)
    marked = marks_words(tokenizer)
    return [_words(encoding, row, tokenizer if marked else None) for row in range(len(rows))]


def _words(encoding: BatchEncoding, row: int, marks: PreTrainedTokenizerBase | None) -> list[Unit]:
    texts, words = encoding.sequence_ids(row), encoding.word_ids(row)
    pieces = pieces_of(encoding["input_ids"][row], marks) if marks else [""] * len(words)
    units: list[Unit] = []
    before = None
    for place, (text, word, piece) in enumerate(zip(texts, words, pieces, strict=True)):
        key = None if text is None or word is None else (text, word)
        if key is not None and key == before and not piece.startswith(BEGINNINGS):
            units[-1].append(place)
        elif key is not None:
            units.append([place])
        before = key
    return units


def words_by_marks(rows: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase) -> list[list[Unit]]:
    """The words of rows of ids alone, by the marks of their pieces (##, ▁, Ġ), as BERT's whole-word masking does it."""
    special = set(tokenizer.all_special_ids)
    marked = marks_words(tokenizer)

    def words(ids: Sequence[int]) -> list[Unit]:
        pieces = pieces_of(ids, tokenizer)
        units: list[Unit] = []
        inside = False
        for place, (id, piece) in enumerate(zip(ids, pieces, strict=True)):
            goes_on = not piece.startswith(BEGINNINGS) if marked else piece.startswith(CONTINUATION)
            if id not in special and inside and goes_on:
                units[-1].append(place)
            elif id not in special:
                units.append([place])
            inside = id not in special
        return units

    return [words(ids) for ids in rows]


def pieces_of(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What stands in the vocabulary for each id."""
    found = tokenizer.convert_ids_to_tokens(list(ids))
    return [found] if isinstance(found, str) else found


def marks_words(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether pieces that begin a word are marked (SentencePiece, byte-level BPE), not those that go on (WordPiece)."""
    pieces = tokenizer.get_vocab()
    begin = sum(piece.startswith(BEGINNINGS) for piece in pieces)
    return begin > sum(piece.startswith(CONTINUATION) for piece in pieces)


def places_of(words: Sequence[str], text: str) -> list[tuple[int, int]]:
    """Where the words of a segmentation stand in their text, as character places [start, end)."""
    found, at = [], 0
    for word in words:
        start = text.find(word, at)
        if start < 0 or not word:
            raise DeltatuneError(
                f"the segmentation has {word!r}, which the text has not after character {at}: {text!r}"
            )
        found.append((start, start + len(word)))
        at = start + len(word)
    return found


def units_at(spans: Iterable[Sequence[Any]], offsets: Sequence[tuple[int, int]], special: Sequence[bool]) -> list[Unit]:
    """The tokens that spans of the text [start, end) cover, wholly or in part; a span without tokens is left out.

    `offsets` are the places of each token in the text (`return_offsets_mapping=True`).
    """
    units: list[Unit] = []
    taken: set[int] = set()
    for start, end in sorted((span[0], span[1]) for span in spans):
        unit = [
            place
            for place, (first, last) in enumerate(offsets)
            if not special[place] and first < end and last > start and place not in taken
        ]
        taken.update(unit)
        if unit:
            units.append(unit)
    return units


def with_rest(units: Sequence[Unit], others: Sequence[Unit]) -> list[Unit]:
    """All units, and of the others (words, say) those that share no token with them; in the order of the text."""
    taken = {place for unit in units for place in unit}
    return sorted([*units, *(other for other in others if not taken.intersection(other))])


def singles(special: Sequence[bool]) -> list[Unit]:
    """Every token that is not special on its own."""
    return [[place] for place, is_special in enumerate(special) if not is_special]
