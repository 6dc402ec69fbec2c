"""Span corruption: spans of a text are replaced by sentinels and asked for, in order.

T5, Raffel et al. 2019, https://arxiv.org/abs/1910.10683
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import PreTrainedTokenizerBase

from deltatune.core.delta import generator_for
from deltatune.core.errors import DeltatuneError
from deltatune.tasks.pretraining.objective import Objective
from deltatune.tasks.pretraining.prefix_lm import cut_documents, ends_of, written_row
from deltatune.tasks.pretraining.random_draws import parts
from deltatune.tasks.task import Encoded, Row, TokenRow, raise_listed, text_column
from deltatune.tasks.tokenization import check_length

DENSITY = 0.15
"""Share of the tokens that is replaced."""
MEAN = 3.0
"""Mean length of a span in tokens."""

NAMES = re.compile(r"<extra_id_(\d+)>")
"""What T5 and its relatives call their sentinels."""


def corrupt_spans(
    ids: Sequence[int],
    sentinels: Sequence[int],
    eos: int | None,
    generator: torch.Generator,
    density: float = DENSITY,
    mean: float = MEAN,
) -> tuple[list[int], list[int]]:
    """The inputs, with a sentinel in place of each span, and the targets: each sentinel and the span it stands for.

    Spans and the texts between them are random partitions, each equally likely; the first token always stays and the
    last never does, as in T5's code. `ids` is a text without its end token; both results end in `eos` where one is
    given. The numbers of tokens and spans depend on the length alone, so that `span_lengths` can tell them.
    """
    noise, spans = noise_counts(len(ids), density, mean)
    if spans > len(sentinels):
        raise DeltatuneError(
            f"{len(ids)} tokens are corrupted in {spans} spans, and there are {len(sentinels)} sentinels; "
            "cut the texts shorter, let spans be longer (mean) or add sentinels to the tokenizer"
        )
    kept_lengths, lost_lengths = parts(len(ids) - noise, spans, generator), parts(noise, spans, generator)
    inputs: list[int] = []
    targets: list[int] = []
    at = 0
    for sentinel, kept, lost in zip(sentinels, kept_lengths, lost_lengths, strict=False):
        inputs += [*ids[at : at + kept], sentinel]
        targets += [sentinel, *ids[at + kept : at + kept + lost]]
        at += kept + lost
    end = [] if eos is None else [eos]
    return inputs + end, targets + end


def noise_counts(length: int, density: float = DENSITY, mean: float = MEAN) -> tuple[int, int]:
    """How many tokens of a text are replaced, and in how many spans. A text needs two tokens: one of them stays."""
    if not 0 < density < 1 or mean < 1:
        raise DeltatuneError(f"density={density} must lie between 0 and 1, and mean={mean} must be 1 or more")
    if length < 2:
        raise DeltatuneError(f"span corruption needs texts of 2 tokens or more, not {length}")
    noise = min(max(round(length * density), 1), length - 1)
    spans = max(1, round(noise / mean))
    return noise, min(spans, noise, length - noise)


def span_lengths(input_length: int, density: float = DENSITY, mean: float = MEAN) -> tuple[int, int]:
    """Of inputs of at most `input_length` tokens: how many tokens of text make one, and how long its target is.

    Both include the end token: inputs of 512 are made of 568 tokens, and their targets have 114.
    """
    if input_length < 3:
        raise DeltatuneError(
            f"corrupted inputs have 3 tokens or more (a token, a sentinel, an end), not {input_length}"
        )

    def lengths(raw: int) -> tuple[int, int]:
        noise, spans = noise_counts(raw, density, mean)
        return raw - noise + spans + 1, noise + spans + 1

    raw = 2
    while lengths(raw + 1)[0] <= input_length:
        raw += 1
    target = lengths(raw)[1]
    # T5's code has this exception so that at a half both are of one length
    if density == 0.5 and target > input_length and raw > 2:
        raw, target = raw - 1, lengths(raw - 1)[1]
    return raw, target


def fill_spans(inputs: Sequence[int], targets: Sequence[int], sentinels: Sequence[int]) -> list[int]:
    """Put the spans of a target, or of a model's answer, back into the inputs; the reverse of `corrupt_spans`.

    A sentinel that the target lacks is filled with nothing. End tokens stay where they are in the inputs; give targets
    without theirs.
    """
    marks = set(sentinels)
    spans: dict[int, list[int]] = {}
    current: list[int] | None = None
    for token in targets:
        if token in marks:
            current = spans.setdefault(token, [])
        elif current is not None:
            current.append(token)
    filled: list[int] = []
    for token in inputs:
        filled += spans.get(token, []) if token in marks else [token]
    return filled


def sentinels_of(tokenizer: PreTrainedTokenizerBase, names: Sequence[str] | None = None) -> list[int]:
    """The ids of a tokenizer's sentinels in order of use: `<extra_id_0>`, `<extra_id_1>`, ... or the `names`."""
    vocabulary = tokenizer.get_vocab()
    if names is not None:
        unknown = [name for name in names if name not in vocabulary]
        if unknown or not names:
            lacking = f"this tokenizer has no token {unknown[0]!r}" if unknown else "no sentinel is named"
            raise DeltatuneError(f"{lacking}; {HOW_TO_ADD}")
        return [vocabulary[name] for name in names]
    found = {int(match[1]): id for name, id in vocabulary.items() if (match := NAMES.fullmatch(name))}
    if not found:
        raise DeltatuneError(f"this tokenizer has no sentinels (<extra_id_0>, ...); {HOW_TO_ADD}")
    return [found[number] for number in sorted(found)]


HOW_TO_ADD = (
    "name tokens that its vocabulary reserves and texts never use, or add some: "
    'tokenizer.add_tokens([f"<extra_id_{i}>" for i in range(100)], special_tokens=True), then '
    "model.resize_token_embeddings(len(tokenizer))"
)


def after_sentinel(targets: Sequence[int], sentinel: int) -> list[int]:
    """Targets that begin with a sentinel, as all did that a T5 without LM adaptation has learnt to write.

    "Span corruption + sentinel" of Lester et al. 2021, section 3.2, https://arxiv.org/abs/2104.08691
    """
    return [sentinel, *targets]


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
        positions_taken: int = 0,
        labelled: bool = True,
        joined: bool = False,
    ) -> Encoded:
        """Tokenise documents, cut them into pieces and corrupt each once, by `seed`; `joined`: for a decoder.

        Raises DeltatuneError for a missing column, documents of fewer than 2 tokens or with sentinels in them, a
        tokenizer without sentinels or with too few for a piece, and a max_length without positions.
        """
        check_length(self.max_length, positions, positions_taken)
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
