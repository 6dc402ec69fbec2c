"""Masked language modelling of tokens, whole words or whole entities."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from transformers import PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError
from deltatune.models.architecture import Loads
from deltatune.tasks.pretraining.masking import (
    Choose,
    Tagger,
    Unit,
    add_disjoint,
    check_rate,
    mask_tokens,
    parse_entities,
    units_of_spans,
    word_offsets,
    word_units,
)
from deltatune.tasks.pretraining.objective import Objective
from deltatune.tasks.row_columns import column, text_column
from deltatune.tasks.task import IGNORED, Encoded, Row, TokenRow
from deltatune.tasks.tokenization import check_length, need_offsets, token_row


@dataclass(frozen=True)
class MaskedLM(Objective):
    """-Σ log p(x_i | x̃) over the chosen i     Devlin et al. 2018, https://arxiv.org/abs/1810.04805

    Tokens, whole words (Cui et al. 2019, https://arxiv.org/abs/1906.08101) or entities and words (ERNIE, Sun et al.
    2019, https://arxiv.org/abs/1904.09223) are chosen. In x̃ they are the mask token, a random token or unchanged.
    """

    name: ClassVar[str] = "mlm"
    loads: ClassVar[Loads] = "mask"
    shortest: ClassVar[int] = 3

    unit: Literal["token", "word", "entity"] = "token"
    """What is chosen as a whole."""
    rate: float = 0.15
    """Share of the tokens that are chosen."""
    shares: tuple[float, ...] = (0.8, 0.1, 0.1)
    """Shares of the chosen tokens that become the mask token, become a random token, or stay."""
    choose: Choose = "count"
    """count: round(rate * tokens) of each input, as in BERT; each: every unit with probability rate, as in ERNIE."""
    words: str = ""
    """Column with the words of each text, for languages without spaces; by default words are the tokenizer's."""
    entities: str = "entities"
    """For unit entity: column of spans, [[start, end], ...] in characters; `with_entities` adds one."""

    def check(self) -> None:
        check_rate(self.rate, self.shares)

    def encode(
        self,
        rows: Sequence[Row],
        tokenizer: PreTrainedTokenizerBase,
        *,
        positions: int | None = None,
        positions_taken: int = 0,
        labelled: bool = True,
        joined: bool = True,
    ) -> Encoded:
        """Tokenise documents, split them into pieces and mask each once, by `seed`; `draw` masks a row again.

        Raises DeltatuneError for a missing column, documents without tokens, entities outside their text, a tokenizer
        without a mask token, and a max_length that the model has no positions for.
        """
        check_length(self.max_length, positions, positions_taken)
        facts = mask_facts(tokenizer)
        texts = text_column(rows, self.text[0])
        spans = self._spans(rows, texts)
        need_offsets(tokenizer, "masking")
        if not texts:
            return Encoded([], 0, [], [], [])
        encoding = tokenizer(
            list(texts), truncation=True, max_length=self.max_length, return_overflowing_tokens=True, verbose=False,
            return_offsets_mapping=True, return_special_tokens_mask=True, return_attention_mask=True,
        )  # fmt: skip
        owners: list[int] = encoding["overflow_to_sample_mapping"]
        words = word_units(encoding, tokenizer) if self.unit != "token" else None
        pieces = []
        for i, owner in enumerate(owners):
            special = [bool(flag) for flag in encoding["special_tokens_mask"][i]]
            if all(special):
                raise DeltatuneError(f"row {owner} has no tokens: {texts[owner]!r}")
            units = None
            if words:
                units = add_disjoint(units_of_spans(spans[owner], encoding["offset_mapping"][i], special), words[i])
            pieces.append(unmasked_row(token_row(encoding, i), special, units, facts))
        return self.drawn(pieces, owners, len(rows))

    def _spans(self, rows: Sequence[Row], texts: Sequence[str]) -> list[list[Sequence[Any]]]:
        """Spans that the rows give for each text: entities, or the words of a segmentation."""
        if self.unit == "token" or not texts:
            return [[] for _ in texts]
        spans: list[list[Sequence[Any]]] = [[] for _ in texts]
        if self.unit == "entity":
            for i, entities in enumerate(column(rows, self.entities)):
                spans[i] += parse_entities(texts[i], entities or (), f"row {i}")
        if self.words:
            for row_spans, text, words in zip(spans, texts, column(rows, self.words), strict=True):
                offsets = word_offsets(words.split() if isinstance(words, str) else words, text)
                row_spans += [span for span in offsets if not any(_overlap(span, other) for other in row_spans)]
        return spans

    def draw(self, row: TokenRow, generator: torch.Generator) -> TokenRow:
        """The row with other tokens masked."""
        return remasked(row, generator, self.rate, self.shares, self.choose)

    def target(self) -> str:
        if self.unit == "token":
            return f"{self.rate:.0%} of the tokens"
        units = "whole words" if self.unit == "word" else "whole entities and words"
        return f"{self.rate:.0%} of the tokens in {units}"


def _overlap(span: Sequence[int], other: Sequence[int]) -> bool:
    return span[0] < other[1] and span[1] > other[0]


def with_entities(
    rows: Iterable[Row], tagger: Tagger, text: str = "text", entities: str = "entities"
) -> list[dict[str, Any]]:
    """Rows with a column of entities from a tagger: a function from a text to [start, end] or [start, end, kind]."""
    tagged = ((row, parse_entities(row[text], tagger(row[text]))) for row in rows)
    return [{**row, entities: [list(entity) for entity in row_entities]} for row, row_entities in tagged]


# ---- rows that can be masked again


def mask_facts(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The mask token and the vocabulary. Raises DeltatuneError for a tokenizer without a mask token."""
    if tokenizer.mask_token_id is None:
        raise DeltatuneError(
            "this tokenizer has no mask token; use an encoder such as BERT, or an objective for models that generate "
            "text: lm, prefix-lm or spans"
        )
    ids = sorted(tokenizer.get_vocab().values())
    contiguous = ids == list(range(len(ids)))
    return {"mask_id": int(tokenizer.mask_token_id), "vocabulary": len(ids) if contiguous else ids}


def unmasked_row(
    tokens: TokenRow, special: Sequence[bool], units: Sequence[Unit] | None, facts: dict[str, Any]
) -> TokenRow:
    """A row in which nothing is masked yet, with everything that `remasked` needs, as plain numbers."""
    row = {**tokens, **facts, "labels": [IGNORED] * len(special), "special": [int(flag) for flag in special]}
    if units is not None:
        numbers = [-1] * len(special)
        for number, unit in enumerate(units):
            for position in unit:
                numbers[position] = number
        row["units"] = numbers
    return row


def remasked(
    row: TokenRow, generator: torch.Generator, rate: float, shares: tuple[float, ...], choose: Choose
) -> TokenRow:
    """The row with its masked tokens restored and others masked."""
    tokens = zip(row["input_ids"], row["labels"], strict=True)
    original = [token if label == IGNORED else label for token, label in tokens]
    units: dict[int, Unit] | None = None
    if "units" in row:
        units = {}
        for position, number in enumerate(row["units"]):
            if number >= 0:
                units.setdefault(number, []).append(position)
    inputs, labels = mask_tokens(
        original, row["special"], generator, mask_id=row["mask_id"], vocabulary=row["vocabulary"], rate=rate,
        shares=shares, units=None if units is None else list(units.values()), choose=choose,
    )  # fmt: skip
    return {**row, "input_ids": inputs, "labels": labels}
