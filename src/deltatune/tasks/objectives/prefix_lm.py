"""Prefix language modelling: a text is cut at a random place, its beginning is read and its rest written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import PreTrainedTokenizerBase

from deltatune.core.delta import generator_for
from deltatune.tasks.objectives.objective import Objective
from deltatune.tasks.objectives.prefixes import split_prefix
from deltatune.tasks.objectives.written import cut_documents, ends_of, written_row
from deltatune.tasks.plain import text_column
from deltatune.tasks.task import Encoded, Row, TokenRow
from deltatune.tasks.tokens import check_length


@dataclass(frozen=True)
class PrefixLM(Objective):
    """-Σ_{t>c} log p(x_t | x_<t), c uniform     Raffel et al. 2019, https://arxiv.org/abs/1910.10683

    With it a T5 learns to write texts instead of spans before a prompt is tuned on it: "LM adaptation" of Lester et al.
    2021, https://arxiv.org/abs/2104.08691. A decoder gets a loss on the rest alone.
    """

    name: ClassVar[str] = "prefix-lm"
    least: ClassVar[int] = 5

    def encode(
        self,
        rows: Sequence[Row],
        tokenizer: PreTrainedTokenizerBase,
        *,
        positions: int | None = None,
        room: int = 0,
        labelled: bool = True,
        joined: bool = False,
    ) -> Encoded:
        """Tokenise documents, cut them into pieces and each piece once in two, by `seed`; `joined`: for a decoder.

        Raises DeltatuneError for a missing column, documents of fewer than 2 tokens and a max_length without positions.
        """
        check_length(self.max_length, positions, room)
        ends = ends_of(tokenizer, joined)
        size = self.max_length - len(ends["start"]) - len(ends["end"])
        cut = cut_documents(text_column(rows, self.text[0]), tokenizer, size)
        found = [
            self.draw({"whole": piece, **ends}, generator_for(self.seed, f"draw.{n}"))
            for n, (_, piece) in enumerate(cut)
        ]
        nothing: list[Any] = [None] * len(rows)
        return Encoded(found, 0, [i for i, _ in cut], nothing, nothing)

    def draw(self, row: TokenRow, generator: torch.Generator) -> TokenRow:
        """The piece cut at another place."""
        return written_row(row, *split_prefix(row["whole"], generator))

    def asked(self) -> str:
        """What is asked for, in words."""
        return "what follows a random beginning"
