"""Prompt rows: rows in a template as the token ids that a model reads, and the words that are scored in the blank.

A masked model reads the blank as mask tokens, one sequence for each length of a word. A left-to-right model reads the
text up to the blank; where a word has several tokens, or text comes after the blank, the tokens of each word and the
text behind it are scored. An encoder-decoder reads the blank as a sentinel (T5), which its decoder repeats before the
word, or as a mask token (BART), whose decoder reads the text up to the word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError
from deltatune.core.input_validation.field_validation import shortened
from deltatune.tasks.prompts.template_tokens import Rendered, ids_of_texts
from deltatune.tasks.prompts.templates import Template
from deltatune.tasks.task import TokenRow

VIRTUAL = 1 << 30
"""Where virtual ids start in rows; a collator puts them behind the vocabulary of its model."""
SENTINEL = "<extra_id_0>"
Form = Literal["masked", "left-to-right", "sentinel"]


class PromptRow(NamedTuple):
    """One row, ready for a model."""

    row: TokenRow
    """`prompt`: the token ids with one token at the blank, or up to it in a left-to-right model; `blank`: its position;
    `words`: the token ids of every word; `after`: those behind the blank of a left-to-right model; `form`: how the
    blank is read; `types`: token types of `prompt`; `input_ids` and `attention_mask`: those of the longest sequence
    that the model reads."""
    cut: bool
    left_out: int = 0
    """Demonstrations that there was no room for."""


def special_form(tokenizer: PreTrainedTokenizerBase, joined: bool) -> Form:
    """How a model reads the blank. Raises DeltatuneError for a tokenizer that has no token for it.

    joined: whether the model is a decoder.
    """
    if joined:
        return "left-to-right"
    if tokenizer.mask_token_id is not None:
        return "masked"
    if SENTINEL in tokenizer.get_vocab():
        return "sentinel"
    raise DeltatuneError(
        f"this tokenizer has neither a mask token nor the sentinel {SENTINEL}, so nothing can stand for the blank; use "
        "a masked or a left-to-right model, or a T5"
    )


@dataclass(frozen=True)
class TemplateEncoder:
    """Makes the rows of one template, with the tokens of its words."""

    template: Template
    words: Sequence[Sequence[int]]
    """Token ids of each word."""
    tokenizer: PreTrainedTokenizerBase
    form: Form
    max_length: int
    word: str = "a"
    """The first word, as text."""
    channel: bool = False
    """Whether the text behind the word is scored, given the word."""

    def problems(self, demonstrated: bool) -> list[str]:
        """What makes the template one that this model cannot read; `demonstrated`: whether text stands in front."""
        if self.form != "left-to-right":
            return ["scoring='channel' is for left-to-right models; choose another scoring"] if self.channel else []
        problems = []
        kinds = [part.kind for part in self.template.parts]
        if self.channel and "column" not in kinds[kinds.index("mask") :]:
            problems.append(
                f"scoring='channel' scores the text behind the word, and the template {shortened(self.template.text)} "
                "has none: put the blank first, as in '{mask}: {text}'"
            )
        if kinds[0] == "mask" and not demonstrated and not self.channel:
            problems.append(
                f"the template {shortened(self.template.text)} begins with its blank, and a left-to-right model reads "
                "nothing before it; put text first, as in '{text} It was {mask}'"
            )
        if "virtual" in kinds[kinds.index("mask") :]:
            problems.append(
                f"the template {shortened(self.template.text)} has virtual tokens behind its blank, which a "
                "left-to-right model would have to predict; put them before it"
            )
        return problems

    def rows(
        self, values: Sequence[dict[str, str]], shown: Sequence[Sequence[str]], separator: str
    ) -> list[PromptRow | str]:
        """The rows with their demonstrations, the oldest left out where there is no room for them.

        A sentence says why in place of a row that cannot be made.
        """
        kept = [list(each) for each in shown]
        results: list[PromptRow | str] = [""] * len(values)
        pending = list(range(len(values)))
        while pending:
            made = self._rendered([values[i] for i in pending], [kept[i] for i in pending], separator)
            longer = []
            for i, rendered in zip(pending, made, strict=True):
                if isinstance(rendered, Rendered):
                    row = self._row(rendered)
                    results[i] = row if isinstance(row, str) else row._replace(left_out=len(shown[i]) - len(kept[i]))
                elif isinstance(rendered, int):
                    kept[i] = self._fewer(kept[i], rendered, separator)
                    longer.append(i)
                else:
                    results[i] = rendered
            pending = longer
        return results

    def _rendered(
        self, values: Sequence[dict[str, str]], shown: Sequence[list[str]], separator: str
    ) -> list[Rendered | int | str]:
        """The rendered rows; for those too long for all of their demonstrations the number of tokens over the limit."""
        masked = self.form == "masked"
        leads = ["" if masked else "".join(f"{text}{separator}" for text in each) for each in shown]
        tails = [list(reversed(each)) if masked else [] for each in shown]
        results: list[Rendered | int | str] = [""] * len(values)
        for demonstrated in (True, False):
            some = [i for i, each in enumerate(shown) if bool(each) == demonstrated]
            if not some:
                continue
            made = self.template.render_rows(
                [values[i] for i in some],
                self.tokenizer,
                VIRTUAL,
                None if demonstrated else self.room,
                self._blank(),
                [leads[i] for i in some],
                [tails[i] for i in some],
                closed=self.form != "left-to-right",
                word=self.word,
            )
            for i, rendered in zip(some, made, strict=True):
                over = 0 if isinstance(rendered, str) else len(rendered.input_ids) - self.room
                results[i] = rendered if over <= 0 else over
        return results

    @property
    def room(self) -> int:
        """The longest prompt, with one token at the blank or none in a left-to-right model."""
        longest = max(map(len, self.words))
        return self.max_length if self.form == "sentinel" else self.max_length - longest + 1

    def _blank(self) -> list[int]:
        if self.form == "left-to-right":
            return []
        vocabulary = self.tokenizer.get_vocab()
        return [int(self.tokenizer.mask_token_id) if self.form == "masked" else vocabulary[SENTINEL]]

    def _fewer(self, shown: list[str], over: int, separator: str) -> list[str]:
        """Without the demonstrations that are furthest from the row: as many as `over` tokens need, but at least one.

        A demonstration may be some tokens shorter within a text than alone, so few are taken at once.
        """
        ids = ids_of_texts([f"{text}{separator}" for text in shown], self.tokenizer)
        gone = 1
        while gone < len(shown) and sum(len(ids[f"{text}{separator}"]) + 2 for text in shown[:gone]) < over:
            gone += 1
        return shown[gone:]

    def _start(self, length: int) -> int | None:
        """What is read before a blank that nothing precedes, as at the start of a text; None if there is no room."""
        tokens = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
        known = [int(token) for token in tokens if token is not None]
        return known[0] if known and length < self.room else None

    def _row(self, rendered: Rendered) -> PromptRow | str:
        ids, blank = rendered.input_ids, rendered.blank
        longest = max(map(len, self.words))
        row: TokenRow = {"form": self.form, "words": self.words, "blank": blank}
        if self.form == "left-to-right":
            row["prompt"], row["after"] = ids[:blank], ids[blank:]
            if self.channel and not row["after"]:
                return "no text stands behind the word, and scoring='channel' scores that text"
            if self.channel:
                row["channel"] = True
            elif not blank:
                start = self._start(len(ids))
                if start is None:
                    return (
                        "nothing stands before the blank, and a left-to-right model predicts a word from what is "
                        "before it; put words in front of {mask}, as in '{text} It was {mask}'"
                    )
                row["prompt"], row["blank"] = [start], 1
            behind = [*max(self.words, key=len), *row["after"]][:-1]
            row["input_ids"] = [*row["prompt"], *behind] if behind else row["prompt"]
        elif self.form == "masked":
            row["prompt"] = ids
            row["input_ids"] = with_blanks(ids, blank, longest)
            if "token_type_ids" in self.tokenizer.model_input_names:
                row["types"] = rendered.token_type_ids
        else:
            row["prompt"] = row["input_ids"] = ids
        row["attention_mask"] = [1] * len(row["input_ids"])
        return PromptRow(row, rendered.cut)


def with_blanks(ids: list[int], blank: int, number: int) -> list[int]:
    """The ids with `number` times the token at the blank; also of token types."""
    return ids if number == 1 else [*ids[:blank], *[ids[blank]] * number, *ids[blank + 1 :]]
