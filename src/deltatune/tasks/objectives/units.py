"""Which tokens make a word, a phrase or an entity: by the tokenizer, by its pieces' marks, or by places in the text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from transformers import BatchEncoding, PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError
from deltatune.tasks.objectives.masking import Unit

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
