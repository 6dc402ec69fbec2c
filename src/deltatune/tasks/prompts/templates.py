"""Templates: a row as a text with one blank, for the model's own head; virtual tokens may stand anywhere in it.

Template("{text} It was {mask}.")                     a cloze question
Template("{a:stem}? {mask}, {b:lower}")               a pair: without its final punctuation, with a small first letter
Template("{3} {text} {3} {mask} {3}")                 P-tuning of a masked language model, nine virtual tokens
Template("{text} {soft:It was} {mask}")               virtual tokens that start as the vectors of words
Template("{passage} Question: {question!}? {mask}")   the passage may be cut, the question may not
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.core.input_validation.field_validation import shortened

_PLACE = re.compile(r"\{([^{}]*)\}")
_FIELD = re.compile(r"(?P<name>\w+)(?P<whole>!?)(?::(?P<form>\w+))?")
FORMS = ("stem", "lower")
"""Forms of a column: `stem` without final punctuation, `lower` with a small first letter (Gao et al. 2021)."""
LEFT_TO_RIGHT = "has no mask token: a left-to-right model predicts the answer at the end"


class TemplatePart(NamedTuple):
    """One part of a template."""

    kind: Literal["virtual", "column", "mask", "separator", "words"]
    text: str
    """The column's name, the words, or the initial text of virtual tokens."""
    virtual: int = 0
    """Number of virtual tokens; 0 for those of a text, whose number the tokenizer knows."""
    whole: bool = False
    """Whether a column is never cut."""
    form: str = ""
    """Form of a column: one of FORMS."""


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


@dataclass(frozen=True)
class Template:
    """A text with fields: `{text}` a column of the row, `{mask}` the blank; the rest is fixed.

    `{3}` is three virtual tokens, `{soft:It was}` one for each token of a text, which it starts from; `{sep}` is the
    tokenizer's separator. A column is cut where a row is too long, never one with `!`: `{question!}`. `{a:stem}` is
    without its final punctuation, `{b:lower}` begins with a small letter. Doubled braces are braces.
    Liu et al. 2021, https://arxiv.org/abs/2103.10385: (P1, x, P2, [MASK], P3) for bidirectional and (P1, x, P2, [MASK])
    for left-to-right models; words between the virtual tokens are anchors.
    """

    text: str

    def __post_init__(self) -> None:
        masks = sum(part.kind == "mask" for part in self.parts)
        problems = [] if masks == 1 else [f"a template has one {{mask}}, for the answer; this one has {masks}"]
        if not self.columns:
            problems.append("a template names at least one column of the rows, such as {text}")
        if self.tokens > 100_000:
            problems.append(f"{self.tokens:,} virtual tokens are too many")
        raise_all(problems, f"cannot use the template {shortened(self.text)}:" if problems else "")

    @cached_property
    def parts(self) -> tuple[TemplatePart, ...]:
        """The parts in order; words keep their white space."""
        text = self.text.replace("{{", "\ue000").replace("}}", "\ue001")
        parts: list[TemplatePart] = []
        end = 0
        for place in _PLACE.finditer(text):
            parts += _words(text[end : place.start()])
            parts.append(_part(place.group(1), self.text))
            end = place.end()
        return (*parts, *_words(text[end:]))

    @property
    def tokens(self) -> int:
        """Number of virtual tokens in the whole template, those of initial texts left out."""
        return sum(part.virtual for part in self.parts)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the rows that it has, each once."""
        return tuple(dict.fromkeys(part.text for part in self.parts if part.kind == "column"))

    @property
    def ends_with_blank(self) -> bool:
        """Whether nothing comes after the blank, as left-to-right models need it for one pass."""
        return self.parts[-1].kind == "mask"

    @property
    def spaced_blank(self) -> bool:
        """Whether a word in the blank follows a space; so too at the very beginning, as Gao et al. 2021 have it."""
        i = next(i for i, part in enumerate(self.parts) if part.kind == "mask")
        before = self.parts[i - 1] if i else None
        return before is None or before.kind != "words" or before.text[-1:] in (" ", "\t")

    def initial_ids(self, tokenizer: PreTrainedTokenizerBase) -> tuple[int | None, ...]:
        """For each virtual token the id of the token whose vector it starts from; None where it has none."""
        ids: list[int | None] = []
        for part in self.parts:
            if part.kind == "virtual":
                ids += self._soft_ids(part, tokenizer) if part.text else [None] * part.virtual
        return tuple(ids)

    def fill(self, row: Mapping[str, Any], word: str) -> str:
        """The row as plain text, with a word in the blank. Raises DeltatuneError for virtual tokens."""
        pieces = []
        for part in self.parts:
            if part.kind == "virtual":
                raise DeltatuneError(f"the template {self.text!r} has virtual tokens, which no text can show")
            pieces.append(
                word if part.kind == "mask" else " " if part.kind == "separator" else _text_of(part, row, self.text)
            )
        return "".join(pieces)

    def render(
        self,
        row: Mapping[str, Any],
        tokenizer: PreTrainedTokenizerBase,
        vocabulary: int,
        max_length: int | None = None,
        blank: Sequence[int] | None = None,
        lead: str = "",
        tail: Sequence[str] = (),
        one_segment: bool = False,
    ) -> Rendered:
        """One row as token ids; `vocabulary` is the number of rows of the model's embedding, where virtual ids start.

        blank: ids that stand at `{mask}`. By default the mask token; a tokenizer without one belongs to a left-to-right
        model: `{mask}` must then be last, and the answer is the next token.
        lead: text in front, such as demonstrations; tail: texts behind, each after a separator.
        one_segment: without the tokenizer's end token, for text that goes on.
        Beyond `max_length` the columns are cut, the longest first, never the template. Raises DeltatuneError for
        missing columns and for what cannot be cut enough.
        """
        masked = tokenizer.mask_token_id is not None
        self._check(row, masked or blank is not None)
        ids = [tokenizer.mask_token_id] if blank is None and masked else list(blank or ())
        texts = {name: str(row[name]) for name in self.columns}
        closed = (masked or blank is not None) and not one_segment
        cut = False
        while True:
            rendered = self._assemble(texts, tokenizer, vocabulary, ids, lead, tail, closed)
            over = 0 if max_length is None else len(rendered.input_ids) - max_length
            if over <= 0:
                return rendered._replace(cut=cut)
            texts, cut = self._shortened(texts, tokenizer, over), True

    def _assemble(
        self,
        texts: Mapping[str, str],
        tokenizer: PreTrainedTokenizerBase,
        vocabulary: int,
        blank: Sequence[int],
        lead: str,
        tail: Sequence[str],
        closed: bool,
    ) -> Rendered:
        before, after = special_tokens(tokenizer)
        ids, types, answer, virtual, kind = list(before), [0] * len(before), -1, vocabulary, 0
        pending, spaces = lead, spells_spaces(tokenizer)

        def flush() -> None:
            nonlocal pending
            text = pending.rstrip(" \t")
            if not spaces or len(ids) == len(before):  # a space counts only between tokens that spell it
                text = text.lstrip(" \t")
            new = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] if text else []
            ids.extend(new)
            types.extend([kind] * len(new))
            pending = ""

        for part in self.parts:
            if part.kind in ("words", "column"):
                pending += _text_of(part, texts, self.text)
                continue
            flush()
            if part.kind == "mask":
                answer = len(ids) if blank else len(ids) - 1
                start = len(ids)
                new = list(blank)
            elif part.kind == "virtual":
                number = len(self._soft_ids(part, tokenizer)) if part.text else part.virtual
                new = list(range(virtual, virtual + number))
                virtual += number
            else:
                new, kind = [_separator(tokenizer)], 1
            ids += new
            types += [0 if part.kind == "separator" else kind] * len(new)
        flush()
        for text in tail:
            separator = [_separator(tokenizer)]
            kind = 1
            new = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            ids += separator + new
            types += [kind] * (1 + len(new))
        if closed:
            ids += after
            types += [kind] * len(after)
        return Rendered(ids, answer, start, types, False)

    def _soft_ids(self, part: TemplatePart, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        space = " " if spells_spaces(tokenizer) else ""
        ids: list[int] = tokenizer(space + part.text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def _check(self, row: Mapping[str, Any], closed: bool) -> None:
        problems = [
            f"the template {self.text!r} names {name!r}, which is not a column of the row{nearest(name, row)}; "
            f"columns: {', '.join(map(repr, row))}"
            for name in self.columns
            if name not in row
        ]
        if not closed and not self.ends_with_blank:
            problems.append(f"the template {self.text!r} has text after {{mask}}, but this tokenizer {LEFT_TO_RIGHT}")
        raise_all(problems)

    def _shortened(self, texts: Mapping[str, str], tokenizer: PreTrainedTokenizerBase, over: int) -> dict[str, str]:
        """The texts with the longest column about `over` tokens shorter, at most down to the second longest."""
        whole = {part.text for part in self.parts if part.kind == "column" and part.whole}
        lengths = {
            name: len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
            for name, text in texts.items()
            if name not in whole
        }
        longest = max(lengths, key=lambda name: lengths[name], default=None)
        if longest is None or lengths[longest] <= 1:
            raise DeltatuneError(
                f"the template {self.text!r} is {over} tokens too long for a row whose columns are cut as far as they "
                "can be; raise max_length, or shorten the template"
            )
        second = max((length for name, length in lengths.items() if name != longest), default=0)
        times = sum(part.kind == "column" and part.text == longest for part in self.parts)
        fewer = min(-(-over // times), max(1, lengths[longest] - max(1, second)), lengths[longest] - 1)
        return {**texts, longest: _cut(texts[longest], lengths[longest] - fewer, tokenizer)}


def _cut(text: str, tokens: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """The first tokens of a text, as text."""
    if tokenizer.is_fast:
        encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        end = encoding["offset_mapping"][:tokens][-1][1]
        return text[: end if end < len(text) else -1]
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    shorter = str(tokenizer.decode(ids[:tokens]))
    return shorter if len(shorter) < len(text) else text[:-1]


def _words(text: str) -> list[TemplatePart]:
    for brace in "{}":
        if brace in text:
            where = f"in {shortened(text)}; write {brace * 2} for a brace"
            raise DeltatuneError(f"the template has a single {brace} {where}")
    text = text.replace("\ue000", "{").replace("\ue001", "}")
    return [TemplatePart("words", text)] if text else []


def _part(content: str, template: str) -> TemplatePart:
    if content.startswith("soft:") and content[5:].strip():
        return TemplatePart("virtual", content[5:].strip())
    match = _FIELD.fullmatch(content.strip())
    if match is None:
        raise DeltatuneError(
            f"cannot read {{{shortened(content, quoted=False)}}} in the template {shortened(template)}: a field is a "
            "column {text}, {text!} or {text:stem}, the blank {mask}, virtual tokens {3} or {soft:words}, or {sep}"
        )
    name, whole, form = match["name"], bool(match["whole"]), match["form"] or ""
    if name.isdigit():
        if len(name) > 6:
            raise DeltatuneError(f"a template of {{{shortened(name, quoted=False)}}} virtual tokens is too long")
        return TemplatePart("virtual", "", int(name))
    if form and form not in FORMS:
        raise DeltatuneError(
            f"{{{content}}} in the template {shortened(template)}: there is no form {form!r}{nearest(form, FORMS)}; "
            f"forms: {', '.join(FORMS)}"
        )
    if name in ("mask", "sep"):
        return TemplatePart("mask" if name == "mask" else "separator", "")
    return TemplatePart("column", name, whole=whole, form=form)


def _text_of(part: TemplatePart, row: Mapping[str, Any], template: str) -> str:
    if part.kind == "words":
        return part.text
    if part.text not in row:
        raise DeltatuneError(
            f"the template {template!r} names {part.text!r}, which is not a column of the row"
            f"{nearest(part.text, row)}; columns: {', '.join(map(repr, row))}"
        )
    text = str(row[part.text]).strip()
    if part.form == "stem":
        return text.rstrip(".!?,;: ")
    return text[:1].lower() + text[1:] if part.form == "lower" else text


def _separator(tokenizer: PreTrainedTokenizerBase) -> int:
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
    return tokenizer.tokenize(" a") != tokenizer.tokenize("a") and tokenizer.tokenize(" a")[:1] == ["Ġa"]
