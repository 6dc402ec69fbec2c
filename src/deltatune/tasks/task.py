"""What a task is: rows to tokens, logits to a loss, logits to answers and scores. Classify is one; others follow it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.models.architecture import Answers

Row = Mapping[str, Any]
"""One row of the user's data, by column."""

TokenRow = dict[str, Any]
"""What one forward pass reads of a row: `input_ids`, `attention_mask`, maybe `token_type_ids` as lists of ints.

Labelled rows have `label` (one a row: a number, or a list of one length for all rows) or `labels` (one a token, IGNORED
where there is none; of an encoder-decoder one for each token of the answer).
"""

IGNORED = -100
"""Label of tokens that no loss is taken at."""


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


SHOWN = 5
"""How many bad rows an error lists before it counts the rest."""

T = TypeVar("T")


def raise_listed(problems: list[str], after: str = "") -> None:
    """Raise one error with the first few problems, the number of the others, and a closing line."""
    if problems:
        more = [f"... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise DeltatuneError("\n".join([*problems[:SHOWN], *more, *([after] if after else [])]))


def column(rows: Sequence[Row], name: str) -> list[Any]:
    """The values of a column. Raises DeltatuneError naming the first row without it and the columns that row has."""
    for i, row in enumerate(rows):
        if name not in row:
            have = ", ".join(map(repr, row))
            raise DeltatuneError(f"no column {name!r} in row {i}{nearest(name, row)}; columns: {have}")
    return [row[name] for row in rows]


def text_column(rows: Sequence[Row], name: str) -> list[str]:
    """The values of a column of texts. Raises DeltatuneError listing the rows that hold something else."""
    values = column(rows, name)
    raise_listed(
        [f"row {i}: {name} is {value!r}, not a text" for i, value in enumerate(values) if not isinstance(value, str)]
    )
    return values


def to_plain(kind: str, task: Any) -> dict[str, Any]:
    """The fields of a task as plain data, and the kind under which it is found again."""
    return {"task": kind, **{name: list(v) if isinstance(v, tuple) else v for name, v in asdict(task).items()}}


def from_plain(cls: type[T], data: dict[str, Any]) -> T:
    """Read `to_plain`'s result. Raises DeltatuneError for missing and unknown fields."""
    known = fields(cls)  # type: ignore[arg-type]
    names = [field.name for field in known]
    given = {name: value for name, value in data.items() if name != "task"}
    problems = [f"the stored task lacks {name!r}" for name in names if name not in given]
    problems += [
        f"the stored task has {name!r}, which is unknown{nearest(name, names)}" for name in given if name not in names
    ]
    raise_all(problems)
    return cls(**given)


def default_of(cls: type[Any], name: str) -> Any:
    """A field's default."""
    found = next(field for field in fields(cls) if field.name == name)
    return None if found.default is MISSING else found.default
