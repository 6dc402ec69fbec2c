"""Span corruption as T5 was pretrained: an encoder-decoder, or a decoder, writes the spans that are missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import PreTrainedTokenizerBase

from deltatune.core.delta import generator_for
from deltatune.tasks.objectives.objective import Objective
from deltatune.tasks.objectives.spans import DENSITY, MEAN, corrupt_spans, noise_counts, sentinels_of, span_lengths
from deltatune.tasks.objectives.written import cut_documents, ends_of, written_row
from deltatune.tasks.plain import raise_listed, text_column
from deltatune.tasks.task import Encoded, Row, TokenRow
from deltatune.tasks.tokens import check_length


@dataclass(frozen=True)
class SpanCorruption(Objective):
    """-log p(⟨0⟩ span_0 ⟨1⟩ span_1 ... | text with ⟨i⟩ for span_i)     Raffel et al. 2019, https://arxiv.org/abs/1910.10683

    An encoder-decoder reads the corrupted text and writes the spans; a decoder has both in one sequence, and no loss
    on the text. `max_length` is the length of the corrupted input: 512 are made of 568 tokens of text.
    """

    name: ClassVar[str] = "spans"
    least: ClassVar[int] = 8

    density: float = DENSITY
    """Share of the tokens that are missing."""
    mean: float = MEAN
    """Mean length of a span in tokens."""
    sentinels: tuple[str, ...] = ()
    """The tokens that stand for spans, in order; by default <extra_id_0>, <extra_id_1>, ..."""

    def check(self) -> None:
        noise_counts(2, self.density, self.mean)

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
        """Tokenise documents, cut them into pieces and corrupt each once, by `seed`; `joined`: for a decoder.

        Raises DeltatuneError for a missing column, documents of fewer than 2 tokens or with sentinels in them, a
        tokenizer without sentinels or with too few for a piece, and a max_length without positions.
        """
        check_length(self.max_length, positions, room)
        sentinels = sentinels_of(tokenizer, self.sentinels or None)
        ends = ends_of(tokenizer, joined)
        cut = cut_documents(text_column(rows, self.text[0]), tokenizer, self.size(ends))
        marks = set(sentinels)
        raise_listed(
            [f"row {i}: the text has the sentinel {tokenizer.convert_ids_to_tokens(min(own))!r} in it"
             for i, piece in cut if (own := marks.intersection(piece))],
            "what is missing could not be told from the text; remove these tokens, or name other sentinels",
        )  # fmt: skip
        found = [
            self.draw({"whole": piece, "sentinels": sentinels, **ends}, generator_for(self.seed, f"draw.{n}"))
            for n, (_, piece) in enumerate(cut)
        ]
        nothing: list[Any] = [None] * len(rows)
        return Encoded(found, 0, [i for i, _ in cut], nothing, nothing)

    def size(self, ends: dict[str, Any]) -> int:
        """Tokens of text that make an input of max_length tokens, corrupted; of a decoder, with what it writes."""
        if not ends["joined"]:
            return span_lengths(self.max_length, self.density, self.mean)[0]
        room, raw = self.max_length - len(ends["start"]) - len(ends["end"]), 2
        while raw + 1 + 2 * noise_counts(raw + 1, self.density, self.mean)[1] <= room:
            raw += 1
        return raw

    def draw(self, row: TokenRow, generator: torch.Generator) -> TokenRow:
        """The piece with other spans missing."""
        return written_row(
            row, *corrupt_spans(row["whole"], row["sentinels"], None, generator, self.density, self.mean)
        )

    def asked(self) -> str:
        """What is asked for, in words."""
        return f"the {self.density:.0%} in missing spans of about {self.mean:g} tokens"
