"""What a task is: rows to tokens, logits to a loss, logits to answers and scores. Classify is one; others follow it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase

Row = Mapping[str, Any]
"""One row of the user's data, by column."""

TokenRow = dict[str, Any]
"""What one forward pass reads of a row: `input_ids`, `attention_mask`, maybe `token_type_ids` as lists of ints.

Labelled rows have `label` (one a row: a number, or a list of one length for all rows) or `labels` (one a token, IGNORED
where there is none; of an encoder-decoder one for each token of the answer).
"""

IGNORED = -100
"""Label of tokens that no loss is taken at."""

Answers = Literal["row", "token", "text", "words"]
"""What a task has the model give: logits for each row or each token by a head; texts, or the probabilities of the words
that are there, by the model's own language model."""


@dataclass(frozen=True)
class Encoded(Sequence[TokenRow]):
    """Encoded rows in the order of the rows they came from.

    A long row may have become several pieces: `owners` says whose each is.
    """

    rows: list[TokenRow]
    """Tokens of each piece."""
    truncated: int = 0
    """How many rows were longer than the task's max_length and lost tokens."""
    owners: Sequence[int] | None = None
    """The row (0 to N - 1) that each piece belongs to; None where each row is one piece."""
    facts: Sequence[Any] | None = None
    """What the task needs of each of the N rows to read an answer out of its pieces, such as its words."""
    truth: Sequence[Any] | None = None
    """What answers are compared with, for each of the N rows; None where that is the pieces' `label`."""

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[TokenRow]:
        return iter(self.rows)

    @property
    def examples(self) -> int:
        """N: how many rows there were."""
        return len(self.rows) if self.facts is None else len(self.facts)

    @property
    def references(self) -> Any:
        """What answers are compared with, for each of the N rows: class numbers or real values (N,), or plain data."""
        return self.truth if self.truth is not None else np.asarray([row["label"] for row in self.rows])


class Task(Protocol):
    """What training, prediction and the comparison ask of a task. All of it is pure: a task holds no weights."""

    answers: ClassVar[Answers]
    """What the model has to give."""

    @property
    def metric(self) -> str:
        """Name of the primary metric, a key of `score`'s result."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of all metrics that may be the primary one."""

    def encode(
        self,
        rows: Sequence[Row],
        tokenizer: PreTrainedTokenizerBase,
        *,
        positions: int | None = None,
        room: int = 0,
        labelled: bool = True,
    ) -> Encoded:
        """Tokenise rows. `positions` is the longest input the model takes, of which an adapter fills `room`."""

    def make_head(self, config: PretrainedConfig, seed: int = 0, **over: Any) -> nn.Module | None:
        """A sensible head for this task on a model with this config, or None where the model's own words are read.

        `over` changes single fields of it.
        """

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss summed over the batch, a scalar. The trainer divides by `items` of the whole effective batch.

        By `answers`: logits (B, C) with labels (B, ...); (B, T, C) with (B, T) or (B, ...); for texts and words
        logits (M, V) at the M labelled tokens alone, and their labels (M,).
        """

    def items(self, labels: Tensor) -> int:
        """How many terms `loss` sums."""

    def collect(self, pieces: Sequence[NDArray[Any]], encoded: Encoded) -> Any:
        """Answers of the N rows from what the model gave for each piece: logits (C,) or (T, C).

        Answers are what `decode` and `score` read: logits (N, C), or a list of plain data.
        """

    def decode(self, answers: Any) -> list[dict[str, Any]]:
        """Answers as users want them, one plain dict a row."""

    def score(self, answers: Any, references: Any) -> dict[str, float]:
        """Every metric of the task by name, the primary one first."""

    def resampled(self, answers: Any, references: Any, weights: NDArray[Any]) -> NDArray[Any]:
        """The primary metric (B,) if row i counted weights[b, i] times, weights (B, N): for a bootstrap."""

    def describe(self) -> str:
        """One line: what is asked for, and by what it is judged."""

    def to_json(self) -> dict[str, Any]:
        """Plain data that `tasks.task_from_json` reads back equal."""
