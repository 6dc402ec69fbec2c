"""Tokens of a template: rows filled into it become token ids as the model would see them in the natural text.

A stretch of text up to a virtual token or a separator is tokenised whole, with a word in its blank, and split at that
word: so a point behind the blank, a line break before it or a demonstration in front are the tokens that they are in
text. A tokenizer whose tokens cross the edges of the word gets the two sides one by one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError
from deltatune.core.input_validation.field_validation import shortened
from deltatune.tasks.prompts.template_parts import TemplatePart, text_of

MANY, LONG = 3, 100
"""Rows with the same text in front, and its characters, from which on that text is tokenised once."""
BLANKS = " \t"
"""White space that a tokenizer may spell as part of the next word; a line break is text of its own."""


class Rendered(NamedTuple):
    """The model's input for one row."""

    input_ids: list[int]
    """Token ids; virtual ones at or above the vocabulary, counted through the template."""
    answer: int
    """Position whose logits predict the answer: the blank, or in a left-to-right model the token before it."""
    blank: int
    """Position of the blank's first token; in a left-to-right model that of the token after the prompt."""
    token_type_ids: list[int]
    """0 for tokens up to the first separator in the template, 1 for those behind it."""
    cut: bool
    """Whether a column was cut."""


class Stretch(NamedTuple):
    """Text between virtual tokens and separators."""

    before: str
    """The text, up to the blank if that is within."""
    after: str = ""
    """The text behind the blank."""
    blank: bool = False
    """Whether the blank is within."""
    context: int = 0
    """Characters at the start that are another text's, and only there for the tokens behind them."""


class SharedLead(NamedTuple):
    """A text in front of many rows, whose tokens are computed once."""

    ids: list[int]
    """Its tokens up to its last word."""
    context: str
    """Its last word: what follows is tokenised behind it."""
    rest: str
    """What follows the last word: a separator."""


@dataclass(frozen=True)
class TemplateTokens:
    """The parts of one template in the tokens of one tokenizer."""

    template: str
    parts: Sequence[TemplatePart]
    tokenizer: PreTrainedTokenizerBase
    spaced: bool
    """Whether the blank follows a space."""
    word: str = "a"
    """A word that stands in the blank while the text is tokenised."""

    @cached_property
    def special(self) -> tuple[list[int], list[int]]:
        """Special tokens before and after a text."""
        return special_tokens(self.tokenizer)

    @cached_property
    def spells_spaces(self) -> bool:
        """Whether a word after a space is another token than the word alone."""
        return spells_spaces(self.tokenizer)

    @cached_property
    def separator(self) -> int:
        """The id of the separator. Raises DeltatuneError for a tokenizer without one."""
        return separator_id(self.tokenizer)

    def render(
        self,
        texts: Sequence[Mapping[str, str]],
        leads: Sequence[str],
        tails: Sequence[Sequence[str]],
        vocabulary: int,
        blank: Sequence[int],
        closed: bool,
    ) -> list[Rendered]:
        """The rows with these columns as token ids, with a text in front (`leads`) and texts behind (`tails`) of each.

        blank: ids that stand for the blank; closed: whether the special tokens after a text come last.
        """
        shared = self._shared_leads(texts, leads)
        stretches = [list(self._stretches(row, lead, shared.get(lead))) for row, lead in zip(texts, leads, strict=True)]
        asked = dict.fromkeys(each for row in stretches for each in row if isinstance(each, Stretch))
        split = [each for each in asked if each.blank]
        sides = dict(zip(split, self._split(split), strict=True))
        plain = [each.before for each in asked if not each.blank] + [text for row in tails for text in row]
        ids_of = ids_of_texts(plain, self.tokenizer)
        rows = []
        for row, lead, tail in zip(stretches, leads, tails, strict=True):
            ids = [*self.special[0], *(shared[lead].ids if lead in shared else ())]
            types, start, virtual, kind = [0] * len(ids), -1, vocabulary, 0
            for item in row:
                if isinstance(item, Stretch):
                    before, after = sides[item] if item.blank else (ids_of[item.before], [])
                    start = len(ids) + len(before) if item.blank else start
                    ids += [*before, *blank, *after] if item.blank else before
                elif item.kind == "virtual":
                    number = len(self.soft_ids(item)) if item.text else item.virtual
                    ids += range(virtual, virtual + number)
                    virtual += number
                elif item.kind == "ids":
                    ids += self._known(item.ids)
                else:
                    ids.append(self.separator)
                types += [kind] * (len(ids) - len(types))  # a separator ends the segment before it
                kind = 1 if isinstance(item, TemplatePart) and item.kind == "separator" else kind
            for text in tail:
                ids += [self.separator, *ids_of[text]]
                kind = 1
            ids += self.special[1] if closed else []
            types += [kind] * (len(ids) - len(types))
            rows.append(Rendered(ids, start if blank else start - 1, start, types, False))
        return rows

    def soft_ids(self, part: TemplatePart) -> list[int]:
        """The tokens that the virtual tokens of a text start from."""
        space = " " if self.spells_spaces else ""
        ids: list[int] = self.tokenizer(space + part.text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def _known(self, ids: Sequence[int]) -> Sequence[int]:
        """The ids. Raises DeltatuneError for those that the tokenizer does not have."""
        unknown = [token for token in ids if token >= len(self.tokenizer)]
        if unknown:
            raise DeltatuneError(
                f"the template {shortened(self.template)} has the token id {unknown[0]}, and this tokenizer has "
                f"{len(self.tokenizer)} tokens"
            )
        return ids

    def _stretches(
        self, row: Mapping[str, str], lead: str, shared: SharedLead | None = None
    ) -> Iterator[Stretch | TemplatePart]:
        """The text of a row, parted at virtual tokens and separators, which come in between."""
        context = 0 if shared is None else len(shared.context)
        before, after, blank, first = lead if shared is None else shared.context + shared.rest, "", False, True
        for part in self.parts:
            if part.kind in ("words", "column"):
                text = text_of(part, row, self.template)
                before, after = (before, after + text) if blank else (before + text, after)
            elif part.kind == "mask":
                blank = True
            else:
                yield self._stripped(before, after, blank, first)._replace(context=context)
                yield part
                before, after, blank, first, context = "", "", False, False, 0
        yield self._stripped(before, after, blank, first)._replace(context=context)

    def _shared_leads(self, texts: Sequence[Mapping[str, str]], leads: Sequence[str]) -> dict[str, SharedLead]:
        """Leads of several rows that can be tokenised apart from them: tried with the first row of each.

        Only those of a template whose first stretch of text has the blank.
        """
        kinds = [part.kind for part in self.parts]
        if {"virtual", "separator"} & set(kinds[: kinds.index("mask")]):
            return {}
        shared = {}
        for lead, rows in Counter(leads).items():
            words = lead.rstrip()
            context = words.split()[-1] if words else ""
            if rows < MANY or len(words) < LONG:
                continue
            each = SharedLead(ids_of_texts([words], self.tokenizer)[words], context, lead[len(words) :])
            row = texts[leads.index(lead)]
            apart, whole = (next(self._stretches(row, lead, given)) for given in (each, None))
            assert isinstance(apart, Stretch)
            assert isinstance(whole, Stretch)
            (before, after), expected = self._split([apart])[0], self._split([whole])[0]
            if ([*each.ids, *before], after) == expected:
                shared[lead] = each
        return shared

    def _stripped(self, before: str, after: str, blank: bool, first: bool) -> Stretch:
        if first or not self.spells_spaces:  # a space counts only between tokens that spell it
            before = before.lstrip(BLANKS)
        if not blank:
            return Stretch(before.rstrip(BLANKS))
        return Stretch(before.rstrip(BLANKS) if self.spaced else before, after.rstrip(BLANKS), True)

    def _whole(self, stretch: Stretch) -> str:
        """The text with the word in its blank."""
        return f"{stretch.before}{' ' if self.spaced else ''}{self.word}{stretch.after}"

    def _split(self, stretches: Sequence[Stretch]) -> list[tuple[list[int], list[int]]]:
        """The tokens before and after the word in the blank of each text."""
        if not stretches:
            return []
        gap = int(self.spaced)
        starts = [len(each.before) for each in stretches]
        ends = [start + gap + len(self.word) for start in starts]
        contexts = [each.context for each in stretches]
        found = edges([self._whole(each) for each in stretches], starts, ends, self.tokenizer, contexts)
        crossed = [
            (each.before[each.context :], each.after)
            for each, sides in zip(stretches, found, strict=True)
            if sides is None
        ]
        alone = ids_of_texts([side for each in crossed for side in each], self.tokenizer)
        left = iter(crossed)
        return [_both(alone, next(left)) if sides is None else sides for sides in found]


def edges(
    texts: Sequence[str],
    starts: Sequence[int],
    ends: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    contexts: Sequence[int] | None = None,
) -> list[tuple[list[int], list[int]] | None]:
    """The token ids before character `start` and from character `end` on of each text; None where a token crosses one.

    contexts: characters at the start of each text whose tokens are left out. None for tokenizers without character
    offsets.
    """
    if not tokenizer.is_fast:
        return [None] * len(texts)
    encoding = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    sides: list[tuple[list[int], list[int]] | None] = []
    contexts = contexts or [0] * len(texts)
    rows = zip(encoding["input_ids"], encoding["offset_mapping"], starts, ends, contexts, strict=True)
    for ids, offsets, start, end, context in rows:
        skipped = sum(a < context and b <= context for a, b in offsets) if context else 0
        before = sum(a < start and b <= start for a, b in offsets)  # a mark of a word's start may have no width
        after = sum(a >= end and b > end for a, b in offsets)
        first, last = before, len(ids) - after
        inside = all(start <= a and b <= end for a, b in offsets[first:last])
        behind = all(context <= a for a, _ in offsets[skipped:first])
        sides.append((list(ids[skipped:first]), list(ids[last:])) if inside and behind and first < last else None)
    return sides


def _both(ids_of: Mapping[str, list[int]], sides: tuple[str, str]) -> tuple[list[int], list[int]]:
    return ids_of[sides[0]], ids_of[sides[1]]


def tokens_after(
    before: str, texts: Sequence[str], spaced: bool, tokenizer: PreTrainedTokenizerBase
) -> list[list[int]]:
    """The token ids of each text as it stands behind other text, `spaced` with a space between."""
    gap = " " if spaced else ""
    whole = [f"{before}{gap}{text}" for text in texts]
    found = edges(whole, [0] * len(texts), [len(before)] * len(texts), tokenizer) if before and not spaced else None
    own_gap = gap if spaced and spells_spaces(tokenizer) else ""
    asked = [f"{own_gap}{text}" for text in texts]
    alone = ids_of_texts(asked, tokenizer)
    ids = [alone[text] for text in asked]
    if found is None:
        return ids
    return [each if sides is None else sides[1] for each, sides in zip(ids, found, strict=True)]


def ids_of_texts(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """Token ids of texts, without special tokens; none of an empty text."""
    each = [text for text in dict.fromkeys(texts) if text]
    if not each:
        return {"": []}
    encoded = tokenizer(each, add_special_tokens=False, verbose=False)["input_ids"]
    return {"": [], **dict(zip(each, encoded, strict=True))}


def separator_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Id of the separator, or of the end token. Raises DeltatuneError for a tokenizer with neither."""
    for name in ("sep_token_id", "eos_token_id"):
        token = getattr(tokenizer, name, None)
        if token is not None:
            return int(token)
    raise DeltatuneError("this tokenizer has neither a separator nor an end token; leave {sep} out of the template")


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens before and after a text."""
    plain: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole: list[int] = tokenizer("a")["input_ids"]
    start = next(i for i in range(len(whole) + 1) if whole[i : i + len(plain)] == plain)
    return whole[:start], whole[start + len(plain) :]


def spells_spaces(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a word after a space is another token than the word alone, as in GPT-2's and RoBERTa's byte pairs."""
    both, one, other = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("x a", "x", "a"))
    return bool(both != [*one, *other])
