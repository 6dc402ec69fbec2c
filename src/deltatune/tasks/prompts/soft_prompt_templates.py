"""Templates: where virtual tokens, a row's columns, fixed words and the answer stand in what the model reads.

Template("{3} {text} {3} {mask} {3}")             P-tuning of a masked language model, nine virtual tokens
Template("{text} Question: {question}? {1} Answer: {mask}.")   one virtual token between words that stay words
Template("{3} {text} {3} {mask}")                 left to right: the answer is what comes next
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError, nearest, raise_all

_PIECE = re.compile(r"\{(\w+)\}")


class Piece(NamedTuple):
    """One part of a template."""

    kind: Literal["virtual", "column", "mask", "words"]
    text: str
    """The column's name, or the words."""
    virtual: int = 0
    """How many virtual tokens."""
    spaced: bool = False
    """Whether a space comes before it."""


class Rendered(NamedTuple):
    """What a model reads of one row."""

    input_ids: list[int]
    """Token ids; virtual ones at or above the vocabulary, counted through the template."""
    answer: int
    """Where the logits speak of the answer: at the mask, or left to right at the last token."""


@dataclass(frozen=True)
class Template:
    """A text with places: `{3}` virtual tokens, `{text}` a column of the row, `{mask}` the answer; words stay words.

    Liu et al. 2021, https://arxiv.org/abs/2103.10385: (P1, x, P2, [MASK], P3) for bidirectional and (P1, x, P2, [MASK])
    for left-to-right models; words between the virtual tokens are anchors.
    """

    text: str

    def __post_init__(self) -> None:
        masks = sum(piece.kind == "mask" for piece in self.pieces)
        problems = [] if masks == 1 else [f"a template has one {{mask}}, the place of the answer; this one has {masks}"]
        if not self.columns:
            problems.append("a template names at least one column of the rows, such as {text}")
        raise_all(problems, f"cannot use the template {self.text!r}:" if problems else "")

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """The parts in order."""
        found: list[Piece] = []
        end, spaced = 0, False
        for place in _PIECE.finditer(self.text):
            words = self.text[end : place.start()]
            if words.strip():
                found.append(Piece("words", words.strip(), spaced=spaced or words[0].isspace()))
            spaced = words[-1:].isspace() if words else False
            found.append(_piece(place.group(1), spaced))
            end, spaced = place.end(), False
        rest = self.text[end:]
        return (*found, Piece("words", rest.strip(), spaced=rest[0].isspace())) if rest.strip() else tuple(found)

    @property
    def tokens(self) -> int:
        """Virtual tokens, of all places together."""
        return sum(piece.virtual for piece in self.pieces)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the rows that it shows."""
        return tuple(piece.text for piece in self.pieces if piece.kind == "column")

    def render(
        self, row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, vocabulary: int, max_length: int | None = None
    ) -> Rendered:
        """One row as token ids; `vocabulary` is the number of rows of the model's embedding, where virtual ids start.

        With a tokenizer that has a mask token the answer is read there. One without belongs to a left-to-right model:
        the mask must then stand last, and the answer is the next token. Beyond `max_length` the columns are cut, the
        longest first, never the template. Raises DeltatuneError for missing columns and a template that is too long.
        """
        pieces, masked = list(self.pieces), tokenizer.mask_token_id is not None
        self._check(row, pieces, masked)
        before, after = special_tokens(tokenizer)
        parts = [self._ids(piece, row, tokenizer) for piece in pieces]
        fixed = len(before) + len(after if masked else []) + self.tokens + masked
        fixed += sum(len(ids) for piece, ids in zip(pieces, parts, strict=True) if piece.kind == "words")
        if max_length is not None:
            self._shorten(pieces, parts, max_length - fixed)
        ids, answer, virtual = list(before), -1, vocabulary
        for piece, part in zip(pieces, parts, strict=True):
            if piece.kind == "mask":
                answer = len(ids) if masked else len(ids) - 1
                ids += [tokenizer.mask_token_id] if masked else []
            elif piece.kind == "virtual":
                ids += range(virtual, virtual + piece.virtual)
                virtual += piece.virtual
            else:
                ids += part
        return Rendered([*ids, *(after if masked else [])], answer)

    def _check(self, row: Mapping[str, Any], pieces: Sequence[Piece], masked: bool) -> None:
        problems = [
            f"the template {self.text!r} shows {name!r}, which the row has not{nearest(name, row)}; "
            f"columns: {', '.join(map(repr, row))}"
            for name in self.columns
            if name not in row
        ]
        if not masked and pieces[-1].kind != "mask":
            problems.append(
                f"the template {self.text!r} goes on behind {{mask}}, but this tokenizer has no mask token: a model "
                "that reads left to right answers at the end"
            )
        raise_all(problems)

    def _ids(self, piece: Piece, row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[int]:
        if piece.kind not in ("words", "column"):
            return []
        text = str(row[piece.text]) if piece.kind == "column" else piece.text
        space = " " if piece.spaced and spells_spaces(tokenizer) else ""
        ids: list[int] = tokenizer(space + text, add_special_tokens=False)["input_ids"]
        return ids

    def _shorten(self, pieces: Sequence[Piece], parts: list[list[int]], room: int) -> None:
        mine = [i for i, piece in enumerate(pieces) if piece.kind == "column"]
        if room < len(mine):
            raise DeltatuneError(
                f"the template {self.text!r} leaves {max(room, 0)} tokens to {len(mine)} columns; raise max_length"
            )
        while sum(len(parts[i]) for i in mine) > room:
            longest = max(mine, key=lambda i: len(parts[i]))
            parts[longest] = parts[longest][:-1]


def _piece(name: str, spaced: bool) -> Piece:
    if name.isdigit():
        return Piece("virtual", "", int(name), spaced)
    return Piece("mask" if name == "mask" else "column", name, 0, spaced)


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and behind a text."""
    plain: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole: list[int] = tokenizer("a")["input_ids"]
    start = next(i for i in range(len(whole) + 1) if whole[i : i + len(plain)] == plain)
    return whole[:start], whole[start + len(plain) :]


def spells_spaces(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a word behind a space is another token than the word alone, as in GPT-2's and RoBERTa's byte pairs."""
    return tokenizer.tokenize(" a") != tokenizer.tokenize("a") and tokenizer.tokenize(" a")[:1] == ["Ġa"]
