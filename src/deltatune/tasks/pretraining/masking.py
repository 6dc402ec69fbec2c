"""Masking of tokens, whole words, phrases or entities, for masked language models.

BERT, Devlin et al. 2018, https://arxiv.org/abs/1810.04805; whole words for Chinese, Cui et al. 2019,
https://arxiv.org/abs/1906.08101; phrases and entities, ERNIE, Sun et al. 2019, https://arxiv.org/abs/1904.09223
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from transformers import BatchEncoding, PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError
from deltatune.tasks.pretraining.random_draws import permutation, random_integer, uniforms
from deltatune.tasks.task import IGNORED

Unit = list[int]
"""Positions (0 to T - 1) of the tokens that are masked together: a word, a phrase, an entity."""

Choose = Literal["count", "each"]
"""How units are chosen: `count`, until round(rate * T) tokens are (BERT); `each`, every one with probability `rate`
(Hugging Face's collator and Baidu's ERNIE)."""

SHARES = (0.8, 0.1, 0.1)
"""Shares of the chosen tokens that become the mask token, become a random token, or stay."""


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
    """Choose about `rate` of the tokens and mask most of them; returns the inputs (T,) and the labels (T,).

    Labels are the original tokens at the chosen positions and IGNORED elsewhere. `special` (T,) marks tokens that are
    never chosen. With `count`, T includes them, as in BERT's code, and at least one token is chosen.
    units: tokens to choose as a whole; by default each token is a unit. Tokens outside all units are not chosen. Units
    are taken in random order, and one that exceeds what is left of the number is skipped. Where none fits (a short text
    of long words) the shortest is taken: BERT's code would leave such a text without labels.
    shares: of the chosen tokens, those that become `mask_id`, a random token, or stay; drawn for each token (as BERT
    and ERNIE do, for words and entities too) or, with `alike`, once for a unit.
    vocabulary: what random tokens are drawn from, a size (ids 0 to size - 1, special ones included, as in BERT) or ids.
    """
    _check(ids, special, rate, shares, units)
    candidates = [[position] for position in range(len(ids))] if units is None else units
    candidates = [list(unit) for unit in candidates if unit and not any(special[position] for position in unit)]
    if choose == "each":
        draws = uniforms(len(candidates), generator)
        chosen = [unit for unit, draw in zip(candidates, draws, strict=True) if draw < rate]
    else:
        chosen = units_within(candidates, max(1, round(rate * len(ids))), generator)
    inputs, labels = list(ids), [IGNORED] * len(ids)
    for unit in chosen:
        draws = uniforms(1, generator) * len(unit) if alike else uniforms(len(unit), generator)
        for position, draw in zip(unit, draws, strict=True):
            labels[position] = ids[position]
            if draw < shares[0]:
                inputs[position] = mask_id
            elif draw < shares[0] + shares[1]:
                inputs[position] = random_token(vocabulary, generator)
    return inputs, labels


def units_within(units: Sequence[Unit], budget: int, generator: torch.Generator) -> list[Unit]:
    """Units in random order while they fit a budget of tokens; the shortest one where none fits."""
    if not units:
        return []
    left, chosen = budget, []
    for index in permutation(len(units), generator):
        if len(units[index]) <= left:
            chosen.append(units[index])
            left -= len(units[index])
        if left == 0:
            break
    return chosen or [min(units, key=len)]


def random_token(vocabulary: int | Sequence[int], generator: torch.Generator) -> int:
    """One id, uniformly."""
    if isinstance(vocabulary, int):
        return random_integer(0, vocabulary - 1, generator)
    return vocabulary[random_integer(0, len(vocabulary) - 1, generator)]


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
    positions = [position for unit in units or () for position in unit]
    if len(set(positions)) < len(positions):
        twice = next(position for position in positions if positions.count(position) > 1)
        raise DeltatuneError(f"token {twice} belongs to two units; every token may belong to one")
    if positions and not (min(positions) >= 0 and max(positions) < len(ids)):
        raise DeltatuneError(f"units name token {max(positions)}; there are tokens 0 to {len(ids) - 1}")


def check_rate(rate: float, shares: tuple[float, ...]) -> None:
    """Raise DeltatuneError for a rate outside (0, 1] and for shares that do not sum to 1."""
    if not 0 < rate <= 1:
        raise DeltatuneError(f"rate={rate} must be more than 0 and at most 1: it is the share of tokens that is chosen")
    if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise DeltatuneError(f"shares={shares} must be three shares (masked, random, unchanged) that sum to 1")


# ---- words


WORD_STARTS = ("▁", "Ġ")
"""Prefixes with which SentencePiece and byte-level BPE mark pieces at the start of a word."""
CONTINUATION = "##"
"""Prefix with which WordPiece marks pieces inside a word."""


def word_units(encoding: BatchEncoding, tokenizer: PreTrainedTokenizerBase) -> list[list[Unit]]:
    """The words of each encoded text or pair as units; special tokens belong to none.

    Words are those of the tokenizer's pre-tokenizer (`word_ids`), and a piece marked as a start (▁, Ġ) begins another
    one. Without a pre-tokenizer (SentencePiece) the marks alone decide. So BERT separates punctuation and Chinese
    characters, GPT-2 separates punctuation, and T5 and Llama attach it to the word before. For Chinese words pass a
    segmentation: `word_offsets` and `units_of_spans`.
    """
    rows: list[list[int]] = encoding["input_ids"]
    if not tokenizer.is_fast:
        return word_units_by_marks(rows, tokenizer)
    marked = marks_word_starts(tokenizer)
    return [_words(encoding, row, tokenizer if marked else None) for row in range(len(rows))]


def _words(encoding: BatchEncoding, row: int, marks: PreTrainedTokenizerBase | None) -> list[Unit]:
    texts, words = encoding.sequence_ids(row), encoding.word_ids(row)
    pieces = vocabulary_pieces(encoding["input_ids"][row], marks) if marks else [""] * len(words)
    units: list[Unit] = []
    previous = None
    for position, (text, word, piece) in enumerate(zip(texts, words, pieces, strict=True)):
        key = None if text is None or word is None else (text, word)
        if key is not None and key == previous and not piece.startswith(WORD_STARTS):
            units[-1].append(position)
        elif key is not None:
            units.append([position])
        previous = key
    return units


def word_units_by_marks(rows: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase) -> list[list[Unit]]:
    """The words of rows of ids, by the marks of their pieces (##, ▁, Ġ), as in BERT's whole-word masking."""
    special = set(tokenizer.all_special_ids)
    marked = marks_word_starts(tokenizer)

    def units_of(ids: Sequence[int]) -> list[Unit]:
        pieces = vocabulary_pieces(ids, tokenizer)
        units: list[Unit] = []
        inside = False
        for position, (id, piece) in enumerate(zip(ids, pieces, strict=True)):
            continues = not piece.startswith(WORD_STARTS) if marked else piece.startswith(CONTINUATION)
            if id not in special and inside and continues:
                units[-1].append(position)
            elif id not in special:
                units.append([position])
            inside = id not in special
        return units

    return [units_of(ids) for ids in rows]


def vocabulary_pieces(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The vocabulary's entry for each id."""
    pieces = tokenizer.convert_ids_to_tokens(list(ids))
    return [pieces] if isinstance(pieces, str) else pieces


def marks_word_starts(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the vocabulary marks starts of words (SentencePiece, byte-level BPE) or continuations (WordPiece)."""
    pieces = tokenizer.get_vocab()
    starts = sum(piece.startswith(WORD_STARTS) for piece in pieces)
    return starts > sum(piece.startswith(CONTINUATION) for piece in pieces)


def word_offsets(words: Sequence[str], text: str) -> list[tuple[int, int]]:
    """The characters [start, end) of each word of a segmentation."""
    offsets, end = [], 0
    for word in words:
        start = text.find(word, end)
        if start < 0 or not word:
            raise DeltatuneError(
                f"the segmentation has {word!r}, which is not in the text after character {end}: {text!r}"
            )
        end = start + len(word)
        offsets.append((start, end))
    return offsets


# ---- entities and other spans of a text


class Entity(NamedTuple):
    """A span [start, end) of a text in characters, and its kind ("" where none is given)."""

    start: int
    end: int
    kind: str = ""


Tagger = Callable[[str], Iterable[Sequence[Any]]]
"""Finds the entities of a text: [start, end] or [start, end, kind] each, in characters."""


def parse_entities(text: str, spans: Iterable[Sequence[Any]], where: str = "the text") -> list[Entity]:
    """Spans as entities in the order of the text. Raises DeltatuneError for those outside it and those that overlap."""
    entities = []
    for span in spans:
        is_span = not isinstance(span, (str, Mapping)) and 2 <= len(span) <= 3 and all(type(n) is int for n in span[:2])
        if not is_span:
            raise DeltatuneError(f"{where}: {span!r} is not an entity; one is [start, end] or [start, end, kind]")
        entity = Entity(span[0], span[1], str(span[2]) if len(span) > 2 else "")
        if not 0 <= entity.start < entity.end <= len(text):
            raise DeltatuneError(
                f"{where}: an entity at {entity.start} to {entity.end} does not lie in its {len(text)} characters; "
                "positions are counted in characters from 0, and the end is the first one after it"
            )
        entities.append(entity)
    entities.sort()
    for first, second in pairwise(entities):
        if second.start < first.end:
            raise DeltatuneError(f"{where}: the entities at {first.start} and {second.start} overlap; give one of them")
    return entities


def units_of_spans(
    spans: Iterable[Sequence[Any]], offsets: Sequence[tuple[int, int]], special: Sequence[bool]
) -> list[Unit]:
    """The tokens that spans of the text [start, end) cover, wholly or in part; a span without tokens is left out.

    `offsets` are the characters of each token (`return_offsets_mapping=True`).
    """
    units: list[Unit] = []
    taken: set[int] = set()
    for start, end in sorted((span[0], span[1]) for span in spans):
        unit = [
            position
            for position, (first, last) in enumerate(offsets)
            if not special[position] and first < end and last > start and position not in taken
        ]
        taken.update(unit)
        if unit:
            units.append(unit)
    return units


def add_disjoint(units: Sequence[Unit], others: Sequence[Unit]) -> list[Unit]:
    """All units, and those of the others (such as words) that share no token with them, in the order of the text."""
    taken = {position for unit in units for position in unit}
    return sorted([*units, *(other for other in others if not taken.intersection(other))])


def token_units(special: Sequence[bool]) -> list[Unit]:
    """Every token that is not special as its own unit."""
    return [[position] for position, is_special in enumerate(special) if not is_special]
