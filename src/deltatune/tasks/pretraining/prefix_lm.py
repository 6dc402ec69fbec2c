"""Language modelling of a text: of all of it, or of what follows a prefix.

Prefix LM: T5, Raffel et al. 2019, https://arxiv.org/abs/1910.10683; as the last 100,000 steps of T5 before prompts are
tuned ("LM adaptation"): Lester et al. 2021, https://arxiv.org/abs/2104.08691
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import PreTrainedTokenizerBase

from deltatune.core.delta import generator_for
from deltatune.core.errors import DeltatuneError
from deltatune.tasks.pretraining.objective import Objective
from deltatune.tasks.pretraining.random_draws import integer
from deltatune.tasks.task import IGNORED, Encoded, Row, TokenRow, raise_listed, text_column
from deltatune.tasks.tokenization import check_length


def split_prefix(ids: Sequence[int], generator: torch.Generator) -> tuple[list[int], list[int]]:
    """A text as a prefix and its continuation, both of one token or more, cut at a uniform place."""
    if len(ids) < 2:
        raise DeltatuneError(f"a prefix and its continuation need 2 tokens or more, not {len(ids)}")
    at = integer(1, len(ids) - 1, generator)
    return list(ids[:at]), list(ids[at:])


def causal_labels(ids: Sequence[int], starts: Sequence[int] = ()) -> list[int]:
    """Labels (T,) of a causal language model: the tokens themselves; models compare place t with place t - 1.

    `starts` are places where another document begins: its first token cannot be told from the document before.
    """
    labels = list(ids)
    for place in starts:
        labels[place] = IGNORED
    return labels


def prefix_labels(prefix: Sequence[int], rest: Sequence[int]) -> tuple[list[int], list[int]]:
    """Inputs and labels (T,) of a decoder that is asked for the continuation alone."""
    return [*prefix, *rest], [IGNORED] * len(prefix) + list(rest)


def pieces(ids: Sequence[int], size: int) -> list[list[int]]:
    """A long document in pieces of `size` tokens; the last may be shorter. Documents never share a piece."""
    if size < 1:
        raise DeltatuneError(f"pieces of {size} tokens cannot be made")
    return [list(ids[start : start + size]) for start in range(0, len(ids), size)]


SMALLEST = 3
"""Tokens of the longest pieces: a piece of one token cannot be cut, so the last may take one from the piece before."""


def cut_documents(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, size: int) -> list[tuple[int, list[int]]]:
    """Documents in pieces of 2 to `size` tokens, without special ones, each with the number of its document.

    Raises DeltatuneError listing the documents of fewer than 2 tokens.
    """
    found = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"] if texts else []
    raise_listed(
        [f"row {i} has {len(ids) or 'no'} tokens: {texts[i]!r}" for i, ids in enumerate(found) if len(ids) < 2],
        "part of a text is read and part of it written, so it needs two tokens; remove these rows",
    )
    return [(i, piece) for i, ids in enumerate(found) for piece in _at_least_two(pieces(ids, size))]


def _at_least_two(parts: list[list[int]]) -> list[list[int]]:
    if len(parts[-1]) == 1:
        parts[-1].insert(0, parts[-2].pop())
    return parts


def ends_of(tokenizer: PreTrainedTokenizerBase, joined: bool) -> dict[str, Any]:
    """What stands before and behind a piece, as `written_row` reads it: decoders have a start token where there is one.

    Encoder-decoders have an end behind what is read and what is written, as T5's pretraining did.
    """
    start, end = tokenizer.bos_token_id if joined else None, tokenizer.eos_token_id
    return {
        "joined": int(joined),
        "start": [] if start is None else [start],
        "end": [] if end is None else [end],
    }


def written_row(row: TokenRow, read: Sequence[int], written: Sequence[int]) -> TokenRow:
    """The row with this to read and this to write: in one sequence for decoders, in two for encoder-decoders."""
    if row["joined"]:
        before = [*row["start"], *read]
        answer = [*written, *row["end"]]
        inputs, labels = before + answer, [IGNORED] * len(before) + answer
    else:
        inputs, labels = [*read, *row["end"]], [*written, *row["end"]]
    return {**row, "input_ids": inputs, "attention_mask": [1] * len(inputs), "labels": labels}


@dataclass(frozen=True)
class PrefixLM(Objective):
    """`-Σ_{t>c} log p(x_t | x_<t)`, c uniform     Raffel et al. 2019, https://arxiv.org/abs/1910.10683

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
        positions_taken: int = 0,
        labelled: bool = True,
        joined: bool = False,
    ) -> Encoded:
        """Tokenise documents, cut them into pieces and each piece once in two, by `seed`; `joined`: for a decoder.

        Raises DeltatuneError for a missing column, documents of fewer than 2 tokens and a max_length without positions.
        """
        check_length(self.max_length, positions, positions_taken)
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
