"""Masked language modelling: tokens, whole words or whole entities of a text are hidden and asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from transformers import BatchEncoding, PreTrainedTokenizerBase

from deltatune.core.delta import generator_for
from deltatune.core.errors import DeltatuneError
from deltatune.models.architecture import Loads
from deltatune.tasks.pretraining.entity_spans import Tagger, entities_of
from deltatune.tasks.pretraining.masking import (
    Choose,
    Unit,
    check_rate,
    mask_tokens,
    places_of,
    units_at,
    with_rest,
    words_of,
)
from deltatune.tasks.pretraining.objective import Objective
from deltatune.tasks.task import IGNORED, Encoded, Row, TokenRow, column, text_column
from deltatune.tasks.tokenization import check_length, need_offsets


@dataclass(frozen=True)
class MaskedLM(Objective):
    """-Σ log p(x_i | x̃) over the chosen i     Devlin et al. 2018, https://arxiv.org/abs/1810.04805

    Chosen are tokens, whole words (Cui et al. 2019, https://arxiv.org/abs/1906.08101) or entities and words (ERNIE, Sun
    et al. 2019, https://arxiv.org/abs/1904.09223). x̃ has the mask, a random token or x_i itself in their place.
    """

    name: ClassVar[str] = "mlm"
    loads: ClassVar[Loads] = "mask"
    least: ClassVar[int] = 3

    unit: Literal["token", "word", "entity"] = "token"
    """What is chosen as a whole."""
    rate: float = 0.15
    """Share of the tokens that is chosen."""
    shares: tuple[float, ...] = (0.8, 0.1, 0.1)
    """Of the chosen: shares that become the mask, a random token, or stay."""
    choose: Choose = "count"
    """count: round(rate * tokens) of each input, as in BERT; each: every unit with the rate, as in ERNIE."""
    words: str = ""
    """A column with each text's words, for texts without spaces; by default words are the tokenizer's."""
    entities: str = "entities"
    """Of unit entity: the column of places, [[start, end], ...] in characters; `with_entities` makes one."""

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
        """Tokenise documents, cut them into pieces and mask them once, by `seed`; `draw` masks a row anew.

        Raises DeltatuneError for a missing column, documents without tokens, entities outside their text, a tokenizer
        without a mask token, and a max_length without positions.
        """
        check_length(self.max_length, positions, positions_taken)
        facts = mask_facts(tokenizer)
        texts = text_column(rows, self.text[0])
        spans = self._spans(rows, texts)
        need_offsets(tokenizer, "masking")
        if not texts:
            return Encoded([], 0, [], [], [])
        found = tokenizer(
            list(texts), truncation=True, max_length=self.max_length, return_overflowing_tokens=True, verbose=False,
            return_offsets_mapping=True, return_special_tokens_mask=True, return_attention_mask=True,
        )  # fmt: skip
        owners: list[int] = found["overflow_to_sample_mapping"]
        words = words_of(found, tokenizer) if self.unit != "token" else None
        pieces = []
        for i, owner in enumerate(owners):
            special = [bool(flag) for flag in found["special_tokens_mask"][i]]
            if all(special):
                raise DeltatuneError(f"row {owner} has no tokens: {texts[owner]!r}")
            units = with_rest(units_at(spans[owner], found["offset_mapping"][i], special), words[i]) if words else None
            row = hidden_row(tokens_of(found, i), special, units, facts)
            pieces.append(self.draw(row, generator_for(self.seed, f"draw.{i}")))
        nothing: list[Any] = [None] * len(rows)
        return Encoded(pieces, 0, owners, nothing, nothing)

    def _spans(self, rows: Sequence[Row], texts: Sequence[str]) -> list[list[Sequence[Any]]]:
        """What the rows themselves say belongs together: entities, or the words of a segmentation."""
        if self.unit == "token" or not texts:
            return [[] for _ in texts]
        found: list[list[Sequence[Any]]] = [[] for _ in texts]
        if self.unit == "entity":
            for i, given in enumerate(column(rows, self.entities)):
                found[i] += entities_of(texts[i], given or (), f"row {i}")
        if self.words:
            for own, text, words in zip(found, texts, column(rows, self.words), strict=True):
                words = words.split() if isinstance(words, str) else words
                own += [place for place in places_of(words, text) if not any(_meet(place, one) for one in own)]
        return found

    def draw(self, row: TokenRow, generator: torch.Generator) -> TokenRow:
        """The row with other tokens masked."""
        return masked_anew(row, generator, self.rate, self.shares, self.choose)

    def asked(self) -> str:
        """What is asked for, in words."""
        what = {"token": "tokens", "word": "tokens in whole words", "entity": "tokens in whole entities and words"}
        return f"{self.rate:.0%} of the tokens" if self.unit == "token" else f"{self.rate:.0%} of the {what[self.unit]}"


def _meet(one: Sequence[int], other: Sequence[int]) -> bool:
    return one[0] < other[1] and one[1] > other[0]


def with_entities(
    rows: Iterable[Row], tagger: Tagger, text: str = "text", entities: str = "entities"
) -> list[dict[str, Any]]:
    """Rows with a column of entities, found by any tagger: a function from a text to [start, end] or [.., kind]."""
    return [{**row, entities: [list(entity) for entity in entities_of(row[text], tagger(row[text]))]} for row in rows]


# --- rows that can be masked again ---


def mask_facts(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What masking needs to know of a tokenizer. Raises DeltatuneError for one without a mask token."""
    if tokenizer.mask_token_id is None:
        raise DeltatuneError(
            "this tokenizer has no mask token; take an encoder such as BERT, or an objective for models that write: "
            "lm, prefix-lm or spans"
        )
    ids = sorted(tokenizer.get_vocab().values())
    whole = ids == list(range(len(ids)))
    return {"mask_id": int(tokenizer.mask_token_id), "vocabulary": len(ids) if whole else ids}


def tokens_of(found: BatchEncoding, row: int) -> TokenRow:
    """What the model reads of one encoded row."""
    names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in found]
    return {name: found[name][row] for name in names}


def hidden_row(
    tokens: TokenRow, special: Sequence[bool], units: Sequence[Unit] | None, facts: dict[str, Any]
) -> TokenRow:
    """A row in which nothing is hidden yet, with all that `masked_anew` reads, as plain numbers."""
    row = {**tokens, **facts, "labels": [IGNORED] * len(special), "special": [int(flag) for flag in special]}
    if units is not None:
        numbers = [-1] * len(special)
        for number, unit in enumerate(units):
            for place in unit:
                numbers[place] = number
        row["units"] = numbers
    return row


def masked_anew(
    row: TokenRow, generator: torch.Generator, rate: float, shares: tuple[float, ...], choose: Choose
) -> TokenRow:
    """The row with the tokens that were hidden back in place and others hidden."""
    whole = [token if label == IGNORED else label for token, label in zip(row["input_ids"], row["labels"], strict=True)]
    units: dict[int, Unit] | None = None
    if "units" in row:
        units = {}
        for place, number in enumerate(row["units"]):
            if number >= 0:
                units.setdefault(number, []).append(place)
    inputs, labels = mask_tokens(
        whole, row["special"], generator, mask_id=row["mask_id"], vocabulary=row["vocabulary"], rate=rate,
        shares=shares, units=None if units is None else list(units.values()), choose=choose,
    )  # fmt: skip
    return {**row, "input_ids": inputs, "labels": labels}
