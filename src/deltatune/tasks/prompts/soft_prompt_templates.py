"""Soft-prompt templates: the positions of virtual tokens, columns, fixed words and the answer in an input.

Template("{3} {text} {3} {mask} {3}")             P-tuning of a masked language model, nine virtual tokens
Template("{text} Question: {question}? {1} Answer: {mask}.")   one virtual token between fixed words
Template("{3} {text} {3} {mask}")                 left to right: the answer is the next token
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.core.input_validation.field_validation import shortened

_PLACE = re.compile(r"\{(\w+)\}")


class TemplatePart(NamedTuple):
    """One part of a template."""

    kind: Literal["virtual", "column", "mask", "words"]
    text: str
    """The column's name, or the words."""
    virtual: int = 0
    """Number of virtual tokens."""
    spaced: bool = False
    """Whether a space comes before it."""


class Rendered(NamedTuple):
    """The model's input for one row."""

    input_ids: list[int]
    """Token ids; virtual ones at or above the vocabulary, counted through the template."""
    answer: int
    """Position whose logits predict the answer: the mask, or in a left-to-right model the last token."""


@dataclass(frozen=True)
class Template:
    """A text with fields: `{3}` virtual tokens, `{text}` a column of the row, `{mask}` the answer; the rest is fixed.

    Liu et al. 2021, https://arxiv.org/abs/2103.10385: (P1, x, P2, [MASK], P3) for bidirectional and (P1, x, P2, [MASK])
    for left-to-right models; words between the virtual tokens are anchors.
    """

    text: str

    def __post_init__(self) -> None:
        masks = sum(part.kind == "mask" for part in self.parts)
        problems = [] if masks == 1 else [f"a template has one {{mask}}, for the answer; this one has {masks}"]
        if not self.columns:
            problems.append("a template names at least one column of the rows, such as {text}")
        raise_all(problems, f"cannot use the template {self.text!r}:" if problems else "")

    @property
    def parts(self) -> tuple[TemplatePart, ...]:
        """The parts in order."""
        parts: list[TemplatePart] = []
        end, spaced = 0, False
        for place in _PLACE.finditer(self.text):
            words = self.text[end : place.start()]
            if words.strip():
                parts.append(TemplatePart("words", words.strip(), spaced=spaced or words[0].isspace()))
            spaced = words[-1:].isspace() if words else False
            parts.append(_part(place.group(1), spaced))
            end, spaced = place.end(), False
        rest = self.text[end:]
        rest_parts = [TemplatePart("words", rest.strip(), spaced=rest[0].isspace())] if rest.strip() else []
        return (*parts, *rest_parts)

    @property
    def tokens(self) -> int:
        """Number of virtual tokens in the whole template."""
        return sum(part.virtual for part in self.parts)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the rows that it has."""
        return tuple(part.text for part in self.parts if part.kind == "column")

    def render(
        self, row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, vocabulary: int, max_length: int | None = None
    ) -> Rendered:
        """One row as token ids; `vocabulary` is the number of rows of the model's embedding, where virtual ids start.

        A tokenizer with a mask token puts it at `{mask}`. One without belongs to a left-to-right model: `{mask}` must
        then be last, and the answer is the next token. Beyond `max_length` the columns are cut, the longest first,
        never the template. Raises DeltatuneError for missing columns and a template that is too long.
        """
        parts, masked = list(self.parts), tokenizer.mask_token_id is not None
        self._check(row, parts, masked)
        before, after = special_tokens(tokenizer)
        token_ids = [self._ids(part, row, tokenizer) for part in parts]
        fixed = len(before) + len(after if masked else []) + self.tokens + masked
        fixed += sum(len(ids) for part, ids in zip(parts, token_ids, strict=True) if part.kind == "words")
        if max_length is not None:
            self._shorten(parts, token_ids, max_length - fixed)
        ids, answer, virtual = list(before), -1, vocabulary
        for part, part_ids in zip(parts, token_ids, strict=True):
            if part.kind == "mask":
                answer = len(ids) if masked else len(ids) - 1
                ids += [tokenizer.mask_token_id] if masked else []
            elif part.kind == "virtual":
                ids += range(virtual, virtual + part.virtual)
                virtual += part.virtual
            else:
                ids += part_ids
        return Rendered([*ids, *(after if masked else [])], answer)

    def _check(self, row: Mapping[str, Any], parts: Sequence[TemplatePart], masked: bool) -> None:
        problems = [
            f"the template {self.text!r} names {name!r}, which is not a column of the row{nearest(name, row)}; "
            f"columns: {', '.join(map(repr, row))}"
            for name in self.columns
            if name not in row
        ]
        if not masked and parts[-1].kind != "mask":
            problems.append(
                f"the template {self.text!r} has text after {{mask}}, but this tokenizer has no mask token: a "
                "left-to-right model predicts the answer at the end"
            )
        raise_all(problems)

    def _ids(self, part: TemplatePart, row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[int]:
        if part.kind not in ("words", "column"):
            return []
        text = str(row[part.text]) if part.kind == "column" else part.text
        space = " " if part.spaced and spells_spaces(tokenizer) else ""
        ids: list[int] = tokenizer(space + text, add_special_tokens=False)["input_ids"]
        return ids

    def _shorten(self, parts: Sequence[TemplatePart], token_ids: list[list[int]], limit: int) -> None:
        columns = [i for i, part in enumerate(parts) if part.kind == "column"]
        if limit < len(columns):
            raise DeltatuneError(
                f"the template {self.text!r} leaves {max(limit, 0)} tokens to {len(columns)} columns; raise max_length"
            )
        while sum(len(token_ids[i]) for i in columns) > limit:
            longest = max(columns, key=lambda i: len(token_ids[i]))
            token_ids[longest] = token_ids[longest][:-1]


def _part(name: str, spaced: bool) -> TemplatePart:
    if name.isdigit():
        if len(name) > 6:
            raise DeltatuneError(f"a template of {{{shortened(name, quoted=False)}}} virtual tokens is too long")
        return TemplatePart("virtual", "", int(name), spaced)
    return TemplatePart("mask" if name == "mask" else "column", name, 0, spaced)


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens before and after a text."""
    plain: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole: list[int] = tokenizer("a")["input_ids"]
    start = next(i for i in range(len(whole) + 1) if whole[i : i + len(plain)] == plain)
    return whole[:start], whole[start + len(plain) :]


def spells_spaces(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a word after a space is another token than the word alone, as in GPT-2's and RoBERTa's byte pairs."""
    return tokenizer.tokenize(" a") != tokenizer.tokenize("a") and tokenizer.tokenize(" a")[:1] == ["Ġa"]
