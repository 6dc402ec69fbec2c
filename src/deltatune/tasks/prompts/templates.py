"""Templates: a row as a text with one blank, for the model's own head; virtual tokens may stand anywhere in it.

Template("{text} It was {mask}.")                     a cloze question
Template("{a:stem}? {mask}, {b:lower}")               a pair: without its final punctuation, with a small first letter
Template("{3} {text} {3} {mask} {3}")                 P-tuning of a masked language model, nine virtual tokens
Template("{text} {soft:It was} {mask}")               virtual tokens that start as the vectors of words
Template("{passage} Question: {question!}? {mask}")   the passage may be cut, the question may not
Template("{text} {ids:2033 7} {mask}.")               two tokens by their ids, as a search over tokens finds them
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.core.input_validation.field_validation import shortened
from deltatune.tasks.prompts.template_parts import TemplatePart, template_parts, text_of
from deltatune.tasks.prompts.template_tokens import Rendered, TemplateTokens

LEFT_TO_RIGHT = "has no mask token: a left-to-right model predicts the answer at the end"


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
        return template_parts(self.text)

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
        before = self.part_before_blank
        if before is None or before.kind in ("virtual", "separator", "ids"):
            return True
        return before.kind == "words" and before.text[-1:] in (" ", "\t")

    def spaces_blank(self, tokenizer: PreTrainedTokenizerBase) -> bool:
        """`spaced_blank` for this tokenizer: text that begins with a word, to be continued, begins without a space."""
        return self.spaced_blank and not (self.part_before_blank is None and tokenizer.mask_token_id is None)

    @property
    def part_before_blank(self) -> TemplatePart | None:
        """The part right before the blank; None where it begins with the blank."""
        i = next(i for i, part in enumerate(self.parts) if part.kind == "mask")
        return self.parts[i - 1] if i else None

    def initial_ids(self, tokenizer: PreTrainedTokenizerBase) -> tuple[int | None, ...]:
        """For each virtual token the id of the token whose vector it starts from; None where it has none."""
        ids: list[int | None] = []
        tokens = self._tokens(tokenizer)
        for part in self.parts:
            if part.kind == "virtual":
                ids += tokens.soft_ids(part) if part.text else [None] * part.virtual
        return tuple(ids)

    def fill(self, row: Mapping[str, Any], word: str) -> str:
        """The row as plain text, with a word in the blank. Raises DeltatuneError for virtual tokens."""
        pieces = []
        for part in self.parts:
            if part.kind == "virtual":
                raise DeltatuneError(f"the template {self.text!r} has virtual tokens, which no text can show")
            if part.kind == "ids":
                raise DeltatuneError(f"the template {self.text!r} has tokens by their ids, which no text can show")
            pieces.append(
                word if part.kind == "mask" else " " if part.kind == "separator" else text_of(part, row, self.text)
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
        Beyond `max_length` the columns are cut, the longest first, never the template. Special tokens that a column
        spells out are read as the tokenizer reads them; they are never the blank. Raises DeltatuneError for missing
        columns and for what cannot be cut enough.
        """
        masked = tokenizer.mask_token_id is not None
        ids = [int(tokenizer.mask_token_id)] if blank is None and masked else list(blank or ())
        closed = masked or blank is not None
        if not closed and not self.ends_with_blank:
            raise DeltatuneError(
                f"the template {self.text!r} has text after {{mask}}, but this tokenizer {LEFT_TO_RIGHT}"
            )
        (rendered,) = self.render_rows(
            [row], tokenizer, vocabulary, max_length, ids, [lead], [tail], closed and not one_segment
        )
        if isinstance(rendered, str):
            raise DeltatuneError(rendered)
        return rendered

    def render_rows(
        self,
        rows: Sequence[Mapping[str, Any]],
        tokenizer: PreTrainedTokenizerBase,
        vocabulary: int,
        max_length: int | None,
        blank: Sequence[int],
        leads: Sequence[str] | None = None,
        tails: Sequence[Sequence[str]] | None = None,
        closed: bool = True,
        word: str = "a",
        cuts: bool = True,
    ) -> list[Rendered | str]:
        """Rows as token ids, as `render` makes them of one; a sentence in place of a row that is too long.

        leads, tails: those of each row; closed: whether the tokenizer's end token comes last; word: what stands in the
        blank while the text is tokenised; cuts: whether columns may be cut. The tokenizer is called once for all rows.
        Raises DeltatuneError for missing columns.
        """
        self._check_columns(rows)
        texts = [{name: str(row[name]) for name in self.columns} for row in rows]
        leads = leads or [""] * len(rows)
        tails = tails or [()] * len(rows)
        tokens = self._tokens(tokenizer, word)
        results: list[Rendered | str] = [""] * len(rows)
        pending, cut = list(range(len(rows))), set[int]()
        while pending:
            made = tokens.render(
                [texts[i] for i in pending],
                [leads[i] for i in pending],
                [tails[i] for i in pending],
                vocabulary,
                blank,
                closed,
            )
            longer = []
            for i, rendered in zip(pending, made, strict=True):
                results[i] = rendered._replace(cut=i in cut)
                over = 0 if max_length is None else len(rendered.input_ids) - max_length
                shorter = self._shortened(texts[i], tokenizer, over) if cuts and over > 0 else None
                if shorter is not None:
                    texts[i] = shorter
                    cut.add(i)
                    longer.append(i)
                elif over > 0:
                    results[i] = self._too_long(over, cuts)
            pending = longer
        return results

    def _too_long(self, over: int, cuts: bool) -> str:
        cut = " whose columns are cut as far as they can be" if cuts else ""
        return (
            f"the template {shortened(self.text)} is {over} tokens too long for a row{cut}; raise max_length, or "
            "shorten the template" + (" or the columns with a !, which are never cut" if self._whole_columns else "")
        )

    def _tokens(self, tokenizer: PreTrainedTokenizerBase, word: str = "a") -> TemplateTokens:
        return TemplateTokens(self.text, self.parts, tokenizer, self.spaces_blank(tokenizer), word)

    def _check_columns(self, rows: Sequence[Mapping[str, Any]]) -> None:
        for row in rows:
            if missing := [name for name in self.columns if name not in row]:
                raise_all([
                    f"the template {self.text!r} names {name!r}, which is not a column of the row"
                    f"{nearest(name, row)}; columns: {', '.join(map(repr, row))}"
                    for name in missing
                ])  # fmt: skip

    @cached_property
    def _whole_columns(self) -> frozenset[str]:
        return frozenset(part.text for part in self.parts if part.kind == "column" and part.whole)

    def _shortened(
        self, texts: Mapping[str, str], tokenizer: PreTrainedTokenizerBase, over: int
    ) -> dict[str, str] | None:
        """The texts with the longest column about `over` tokens shorter, at most down to the second longest.

        None where no column can be cut.
        """
        cuttable = {name: text for name, text in texts.items() if name not in self._whole_columns and text}
        if not cuttable:
            return None
        encoding = tokenizer(
            list(cuttable.values()), add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast, verbose=False
        )
        lengths = {name: len(ids) for name, ids in zip(cuttable, encoding["input_ids"], strict=True)}
        longest = max(lengths, key=lambda name: lengths[name])
        if lengths[longest] <= 1:
            return None
        second = max((length for name, length in lengths.items() if name != longest), default=0)
        times = sum(part.kind == "column" and part.text == longest for part in self.parts)
        fewer = min(-(-over // times), max(1, lengths[longest] - max(1, second)), lengths[longest] - 1)
        text, kept, i = texts[longest], lengths[longest] - fewer, list(cuttable).index(longest)
        if tokenizer.is_fast:
            end = encoding["offset_mapping"][i][kept - 1][1]
            shorter = text[: end if end < len(text) else -1]
        else:
            shorter = str(tokenizer.decode(encoding["input_ids"][i][:kept]))
        return {**texts, longest: shorter if len(shorter) < len(text) else text[:-1]}
