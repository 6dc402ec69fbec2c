"""What a task is: rows to tokens, logits to a loss, logits to answers and scores. Classify is one; others follow it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from deltatune.tasks.heads import HeadConfig

Row = Mapping[str, Any]
"""One row of the user's data, by column."""

TokenRow = dict[str, Any]
"""One encoded row: `input_ids`, `attention_mask`, maybe `token_type_ids` as lists of ints; `label` where it has one."""


@dataclass(frozen=True)
class Encoded(Sequence[TokenRow]):
    """Encoded rows in the order of the rows they came from."""

    rows: list[TokenRow]
    """Tokens of each row."""
    truncated: int = 0
    """How many rows were longer than the task's max_length and lost tokens."""

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[TokenRow]:
        return iter(self.rows)

    @property
    def references(self) -> NDArray[Any]:
        """The labels (N,): class numbers or real values."""
        return np.asarray([row["label"] for row in self.rows])


class Task(Protocol):
    """What training, prediction and the comparison ask of a task. All of it is pure: a task holds no weights."""

    @property
    def metric(self) -> str:
        """Name of the primary metric, a key of `score`'s result."""

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

    def head_config(self, config: PretrainedConfig, **over: Any) -> HeadConfig:
        """A sensible head for this task on a model with this config; `over` changes single fields."""

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss summed over the batch, a scalar. The trainer divides by `items` of the whole effective batch."""

    def items(self, labels: Tensor) -> int:
        """How many terms `loss` sums."""

    def decode(self, logits: NDArray[Any]) -> list[dict[str, Any]]:
        """One answer a row, as plain data."""

    def score(self, logits: NDArray[Any], references: NDArray[Any]) -> dict[str, float]:
        """Every metric of the task by name."""

    def measure(self, predictions: NDArray[Any], references: NDArray[Any]) -> float:
        """The primary metric alone, from `predictions`; cheap enough for a bootstrap."""

    def predictions(self, logits: NDArray[Any]) -> NDArray[Any]:
        """What the metrics compare with the references (N,)."""

    def to_json(self) -> dict[str, Any]:
        """Plain data that `tasks.task_from_json` reads back equal."""
