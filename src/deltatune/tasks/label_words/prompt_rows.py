"""Prompt rows: a row in a template as the sequences that a model reads, and the tokens whose scores make its words'.

A masked model reads the blank as mask tokens, one sequence for each length of a word. A left-to-right model reads the
text up to the blank; where a word has several tokens, or text comes after the blank, one sequence for each word, whose
tokens and the text after it are scored. T5 reads a sentinel, and its decoder the words after the same sentinel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError
from deltatune.tasks.prompts.templates import Rendered, Template
from deltatune.tasks.task import TokenRow

VIRTUAL = 1 << 30
"""Where virtual ids start in rows; a collator puts them behind the vocabulary of its model."""
SENTINEL = "<extra_id_0>"
Form = Literal["masked", "left-to-right", "sentinel"]


class PromptRow(NamedTuple):
    """One row, ready for a model."""

    row: TokenRow
    """`sequences`: lists of token ids; `types`: their token types; `scored`: for each word (sequence, position, id) of
    its tokens, where `position` is that of the state that predicts the token; `decoder`: the decoder's inputs, for a
    sentinel; `input_ids` and `attention_mask`: those of the longest sequence, for its length."""
    cut: bool


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
class PromptEncoder:
    """Makes the rows of one template with the tokens of its words."""

    template: Template
    words: Sequence[Sequence[int]]
    """Token ids of each word."""
    tokenizer: PreTrainedTokenizerBase
    form: Form
    max_length: int

    def row(self, values: dict[str, str], demonstrations: Sequence[str], separator: str) -> PromptRow:
        """One row with its demonstrations, the oldest left out where there is no room for them."""
        shown = list(demonstrations)
        while True:
            try:
                made = self._made(values, shown, separator)
            except DeltatuneError:
                if not shown:
                    raise
                shown = self._fewer(shown)
                continue
            if not (made.cut and shown):
                return made
            shown = self._fewer(shown)

    def _fewer(self, shown: list[str]) -> list[str]:
        """Without the demonstration that is furthest from the row: the oldest."""
        return shown[1:]

    def _made(self, values: dict[str, str], shown: Sequence[str], separator: str) -> PromptRow:
        if self.form == "masked":
            return self._masked(values, shown)
        lead = "".join(f"{text}{separator}" for text in shown)
        return self._sentinel(values, lead) if self.form == "sentinel" else self._left_to_right(values, lead)

    def _masked(self, values: dict[str, str], shown: Sequence[str]) -> PromptRow:
        mask = int(self.tokenizer.mask_token_id)
        lengths = sorted({len(ids) for ids in self.words})
        rendered = [
            self.template.render(
                values, self.tokenizer, VIRTUAL, self.max_length, [mask] * length, tail=[*reversed(shown)]
            )
            for length in lengths
        ]
        scored = []
        for ids in self.words:
            number = lengths.index(len(ids))
            scored.append([(number, rendered[number].blank + i, token) for i, token in enumerate(ids)])
        typed = "token_type_ids" in self.tokenizer("a")
        types = [each.token_type_ids for each in rendered] if typed else None
        return self._row([each.input_ids for each in rendered], types, scored, rendered)

    def _left_to_right(self, values: dict[str, str], lead: str) -> PromptRow:
        longest = max(map(len, self.words))
        one_pass = self.template.ends_with_blank and longest == 1
        room = self.max_length - (0 if one_pass else longest)
        rendered = self.template.render(values, self.tokenizer, VIRTUAL, room, (), lead, one_segment=True)
        prompt, after = rendered.input_ids[: rendered.blank], rendered.input_ids[rendered.blank :]
        if not prompt:
            raise DeltatuneError(
                f"the template {self.template.text!r} begins with its blank, and a left-to-right model reads nothing "
                "before it; put the text first"
            )
        last = len(prompt) - 1
        if one_pass:
            return self._row([prompt], None, [[(0, last, ids[0])] for ids in self.words], [rendered])
        sequences, scored = [], []
        for number, ids in enumerate(self.words):
            answer = [*ids, *after]
            sequences.append([*prompt, *answer[:-1]])
            scored.append([(number, last + i, token) for i, token in enumerate(answer)])
        return self._row(sequences, None, scored, [rendered])

    def _sentinel(self, values: dict[str, str], lead: str) -> PromptRow:
        sentinel = self.tokenizer.get_vocab()[SENTINEL]
        rendered = self.template.render(values, self.tokenizer, VIRTUAL, self.max_length, [sentinel], lead)
        if all(len(ids) == 1 for ids in self.words):
            decoder = [[sentinel]]
            scored = [[(0, 1, ids[0])] for ids in self.words]  # after the start token and the sentinel
        else:
            decoder = [[sentinel, *ids[:-1]] for ids in self.words]
            scored = [[(n, 1 + i, token) for i, token in enumerate(ids)] for n, ids in enumerate(self.words)]
        made = self._row([rendered.input_ids] * len(decoder), None, scored, [rendered])
        made.row["decoder"] = decoder
        return made

    def _row(
        self,
        sequences: list[list[int]],
        types: list[list[int]] | None,
        scored: list[list[tuple[int, int, int]]],
        rendered: Sequence[Rendered],
    ) -> PromptRow:
        longest = max(sequences, key=len)
        row: TokenRow = {
            "input_ids": longest,
            "attention_mask": [1] * len(longest),
            "sequences": sequences,
            "scored": scored,
        }
        if types is not None:
            row["types"] = types
        return PromptRow(row, any(each.cut for each in rendered))
