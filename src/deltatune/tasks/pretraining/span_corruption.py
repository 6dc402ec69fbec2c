"""Span corruption: sentinels replace spans of a text, and the model generates the spans in order."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError
from deltatune.tasks.pretraining.objective import Objective
from deltatune.tasks.pretraining.prefix_lm import end_tokens, sequence_row, split_documents
from deltatune.tasks.pretraining.random_draws import random_partition
from deltatune.tasks.row_columns import raise_listed, text_column
from deltatune.tasks.task import Encoded, Row, TokenRow
from deltatune.tasks.tokenization import check_length

DENSITY = 0.15
"""Default share of the tokens that are replaced."""
MEAN = 3.0
"""Default mean length of a span in tokens."""

NAMES = re.compile(r"<extra_id_(\d+)>")
"""Names of the sentinels of T5 and its relatives."""


@dataclass(frozen=True)
class SpanCorruption(Objective):
    """-log p(⟨0⟩ span_0 ⟨1⟩ span_1 ... | text with ⟨i⟩ for span_i)     Raffel et al. 2019, https://arxiv.org/abs/1910.10683

    An encoder-decoder reads the corrupted text and generates the spans; a decoder has both in one sequence, and no
    loss on the text. `max_length` is the length of the corrupted input: 512 are made of 568 tokens of text.
    """

    name: ClassVar[str] = "spans"
    shortest: ClassVar[int] = 8

    density: float = DENSITY
    """Share of the tokens that are replaced."""
    mean: float = MEAN
    """Mean length of a span in tokens."""
    sentinels: tuple[str, ...] = ()
    """Names of the sentinels, in order; by default <extra_id_0>, <extra_id_1>, ..."""

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
        """Tokenise documents, split them into pieces and corrupt each once, by `seed`.

        `joined`: input and target are one sequence, for a decoder. Raises DeltatuneError for a missing column,
        documents of fewer than 2 tokens or with sentinels in them, a tokenizer without sentinels or with too few for a
        piece, and a max_length that the model has no positions for.
        """
        check_length(self.max_length, positions, positions_taken)
        sentinels = sentinel_ids(tokenizer, self.sentinels or None)
        ends = end_tokens(tokenizer, joined)
        pieces = split_documents(text_column(rows, self.text[0]), tokenizer, self.size(ends))
        sentinel_set = set(sentinels)
        raise_listed(
            [f"row {i}: the text has the sentinel {tokenizer.convert_ids_to_tokens(min(used))!r} in it"
             for i, piece in pieces if (used := sentinel_set.intersection(piece))],
            "sentinels must not occur in the text; remove these tokens, or name other sentinels",
        )  # fmt: skip
        whole = [{"whole": piece, "sentinels": sentinels, **ends} for _, piece in pieces]
        return self.drawn(whole, [owner for owner, _ in pieces], len(rows))

    def size(self, ends: dict[str, Any]) -> int:
        """Length of a text whose corrupted input has max_length tokens; for a decoder, input and target together."""
        if not ends["joined"]:
            return span_lengths(self.max_length, self.density, self.mean)[0]
        limit, raw = self.max_length - len(ends["start"]) - len(ends["end"]), 2
        while raw + 1 + 2 * noise_counts(raw + 1, self.density, self.mean)[1] <= limit:
            raw += 1
        return raw

    def draw(self, row: TokenRow, generator: torch.Generator) -> TokenRow:
        """The piece with other spans replaced."""
        inputs, targets = corrupt_spans(row["whole"], row["sentinels"], None, generator, self.density, self.mean)
        return sequence_row(row, inputs, targets)

    def target(self) -> str:
        return f"the {self.density:.0%} in missing spans of about {self.mean:g} tokens"


# ---- spans and sentinels


def corrupt_spans(
    ids: Sequence[int],
    sentinels: Sequence[int],
    eos: int | None,
    generator: torch.Generator,
    density: float = DENSITY,
    mean: float = MEAN,
) -> tuple[list[int], list[int]]:
    """The inputs, with a sentinel in place of each span, and the targets: each sentinel and its span.

    Spans and the texts between them are random partitions, each equally likely; the first token is always kept and the
    last never is, as in T5's code. `ids` is a text without its end token; both results end in `eos` if it is given.
    The numbers of tokens and spans depend on the length alone, so `span_lengths` can compute them.
    """
    noise, spans = noise_counts(len(ids), density, mean)
    if spans > len(sentinels):
        raise DeltatuneError(
            f"{len(ids)} tokens are corrupted in {spans} spans, and there are {len(sentinels)} sentinels; "
            "use shorter texts, longer spans (mean) or add sentinels to the tokenizer"
        )
    kept_lengths = random_partition(len(ids) - noise, spans, generator)
    replaced_lengths = random_partition(noise, spans, generator)
    inputs: list[int] = []
    targets: list[int] = []
    start = 0
    for sentinel, kept, length in zip(sentinels, kept_lengths, replaced_lengths, strict=False):
        inputs += [*ids[start : start + kept], sentinel]
        targets += [sentinel, *ids[start + kept : start + kept + length]]
        start += kept + length
    end = [] if eos is None else [eos]
    return inputs + end, targets + end


def noise_counts(length: int, density: float = DENSITY, mean: float = MEAN) -> tuple[int, int]:
    """Numbers of replaced tokens and of spans in a text. A text needs two tokens: one of them is kept."""
    if not 0 < density < 1 or mean < 1:
        raise DeltatuneError(f"density={density} must lie between 0 and 1, and mean={mean} must be 1 or more")
    if length < 2:
        raise DeltatuneError(f"span corruption needs texts of 2 tokens or more, not {length}")
    noise = min(max(round(length * density), 1), length - 1)
    spans = max(1, round(noise / mean))
    return noise, min(spans, noise, length - noise)


def span_lengths(input_length: int, density: float = DENSITY, mean: float = MEAN) -> tuple[int, int]:
    """Length of the text that makes a corrupted input of at most `input_length` tokens, and of its target.

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
    # T5's code has this exception so that at a density of one half both have the same length
    if density == 0.5 and target > input_length and raw > 2:
        raw, target = raw - 1, lengths(raw - 1)[1]
    return raw, target


def fill_spans(inputs: Sequence[int], targets: Sequence[int], sentinels: Sequence[int]) -> list[int]:
    """The inputs with the spans of a target, or of a generated answer, in place; the inverse of `corrupt_spans`.

    A sentinel that the target lacks becomes empty. End tokens of the inputs stay; pass targets without theirs.
    """
    sentinel_set = set(sentinels)
    spans: dict[int, list[int]] = {}
    current: list[int] | None = None
    for token in targets:
        if token in sentinel_set:
            current = spans.setdefault(token, [])
        elif current is not None:
            current.append(token)
    filled: list[int] = []
    for token in inputs:
        filled += spans.get(token, []) if token in sentinel_set else [token]
    return filled


def sentinel_ids(tokenizer: PreTrainedTokenizerBase, names: Sequence[str] | None = None) -> list[int]:
    """The ids of a tokenizer's sentinels in order of use: `<extra_id_0>`, `<extra_id_1>`, ... or the `names`."""
    vocabulary = tokenizer.get_vocab()
    if names is not None:
        unknown = [name for name in names if name not in vocabulary]
        if unknown or not names:
            problem = f"this tokenizer has no token {unknown[0]!r}" if unknown else "no sentinel is named"
            raise DeltatuneError(f"{problem}; {HOW_TO_ADD}")
        return [vocabulary[name] for name in names]
    numbered = {int(match[1]): id for name, id in vocabulary.items() if (match := NAMES.fullmatch(name))}
    if not numbered:
        raise DeltatuneError(f"this tokenizer has no sentinels (<extra_id_0>, ...); {HOW_TO_ADD}")
    return [numbered[number] for number in sorted(numbered)]


HOW_TO_ADD = (
    "name reserved tokens of its vocabulary that no text uses, or add some: "
    'tokenizer.add_tokens([f"<extra_id_{i}>" for i in range(100)], special_tokens=True), then '
    "model.resize_token_embeddings(len(tokenizer))"
)


def prepend_sentinel(targets: Sequence[int], sentinel: int) -> list[int]:
    """Targets that start with a sentinel, like all targets in the pretraining of a T5 without LM adaptation.

    "Span corruption + sentinel" of Lester et al. 2021, section 3.2, https://arxiv.org/abs/2104.08691
    """
    return [sentinel, *targets]
