"""Task: rows to tokens, logits to a loss, logits to answers and scores; what every task is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.core.input_validation.option_names import NamedOptions
from deltatune.core.trained_rows import Hashes
from deltatune.data import LabelKind
from deltatune.data.media.media_files import Inputs
from deltatune.models.architecture import Answers, Family, Loads
from deltatune.tasks.heads import Head, HeadConfig
from deltatune.tasks.metrics.corpus_score import CorpusScore

Row = Mapping[str, Any]
"""One row of the user's data, by column."""

TokenRow = dict[str, Any]
"""One encoded row, the input of a forward pass: lists of ints, `input_ids`, `attention_mask`, maybe `token_type_ids`.

Labelled rows have `label` (one per row: a number, or a list of the same length in every row) or `labels` (one per
token, IGNORED where there is none; for an encoder-decoder one per token of the answer). A row of an image or a sound
has its `file` and its `length` in place of tokens.
"""

IGNORED = -100
"""Label of tokens that the loss leaves out."""


def row_length(row: TokenRow) -> int:
    """How long an encoded row is: its tokens, or what its media file has of its own unit."""
    return len(row["input_ids"]) if "input_ids" in row else int(row["length"])


@dataclass(frozen=True)
class Encoded(Sequence[TokenRow]):
    """Encoded rows in the order of the rows they came from.

    A long row may be encoded as several pieces: `owners` gives the row of each piece.
    """

    rows: list[TokenRow]
    """Tokens of each piece."""
    truncated: int = 0
    """How many rows were longer than the task's max_length and lost tokens."""
    owners: Sequence[int] | None = None
    """The row (0 to N - 1) that each piece belongs to; None where each row is one piece."""
    facts: Sequence[Any] | None = None
    """What the task needs of each of the N rows to decode an answer from its pieces, such as its words."""
    row_references: Sequence[Any] | None = None
    """The references of the N rows; None where they are the `label` of the pieces."""
    row_hashes: Hashes | None = None
    """Hashes of the N rows' texts and labels, where they are labelled (`tasks.row_hashes`)."""
    notes: tuple[str, ...] = ()
    """What a user must know of these rows, in sentences."""

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[TokenRow]:
        return iter(self.rows)

    @property
    def examples(self) -> int:
        """N, the number of rows."""
        return len(self.rows) if self.facts is None else len(self.facts)

    @property
    def references(self) -> Any:
        """The references of the N rows: class numbers or values (N,), or plain data."""
        return (
            self.row_references if self.row_references is not None else np.asarray([row["label"] for row in self.rows])
        )


class Task(NamedOptions, ABC):
    """What training, prediction and the comparison ask of a task. A task holds no weights.

    A subclass is a frozen dataclass whose fields are stored with an adapter.
    """

    name: ClassVar[str]
    """Name under which a task is stored."""
    answers: ClassVar[Answers]
    """What the model outputs for it."""
    loads: ClassVar[Loads] = "row"
    """Kind of model that `load_backbone` loads for it."""
    families: ClassVar[tuple[Family, ...]] = ("encoder", "decoder", "encoder-decoder")
    """Model families that can do it."""
    inference_fields: ClassVar[tuple[str, ...]] = ()
    """Fields that may change after training."""
    dynamic: ClassVar[bool] = False
    """Whether `draw` makes another row of an encoded one in every epoch, as in dynamic masking."""
    added_fields: ClassVar[Mapping[str, Any]] = {}
    """Fields that were added after adapters had been stored without them, with the value that those adapters mean."""
    extra_labels: ClassVar[tuple[str, ...]] = ()
    """Labels of a batch besides `labels`; the model's forward does not get them."""

    text: tuple[str, ...] = ()
    """Columns of the input."""
    inputs: Inputs = "text"
    """What the columns hold: texts, or names of image or sound files."""
    label: str = ""
    """Column of the label; "" where a task has none."""
    labels: tuple[str, ...] = ()
    """Names of the classes; empty where a task has none."""
    metric: str
    """Name of the primary metric, a key of `score`'s result."""

    @property
    def has_virtual_tokens(self) -> bool:
        """Whether encoded rows have an adapter's virtual tokens, which are put in front of them otherwise."""
        return False

    @property
    def compares_texts(self) -> bool:
        """Whether encoding needs the model: `with_demonstrations` chooses by similarity what a row is shown."""
        return False

    @property
    @abstractmethod
    def metrics(self) -> tuple[str, ...]:
        """Names of all metrics that may be the primary one."""

    @property
    @abstractmethod
    def label_kind(self) -> LabelKind:
        """Kind of labels of the data that it is for."""

    # ---- rows to tokens

    @abstractmethod
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
        """Tokenise rows.

        positions: longest input the model takes, None without a limit; the adapter takes `positions_taken` of them.
        labelled: whether the rows have labels to encode.
        joined: whether prompt and answer are one sequence, as for decoders; for other tasks it has no meaning.
        """

    def draw(self, row: TokenRow, generator: torch.Generator) -> TokenRow:
        """Another random version of an encoded row, for `dynamic` tasks."""
        return row

    # ---- logits to a loss

    def head_config(self, config: PretrainedConfig, **over: Any) -> HeadConfig | None:
        """Head for this task on a model with this config, or None where the language-model head is used.

        over: fields of the head to change.
        """
        return None

    def make_head(self, config: PretrainedConfig, seed: int = 0, **over: Any) -> Head | None:
        """The head itself, or None where the language-model head is used."""
        head = self.head_config(config, **over)
        return None if head is None else Head(head, seed)

    @abstractmethod
    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss summed over the batch, a scalar. The trainer divides it by `items` of the whole effective batch.

        By `answers`: for rows logits (B, C) and labels (B, ...); for tokens (B, T, C) and (B, T) or (B, ...); for text
        and likelihood logits (M, V) and labels (M,) of the M labelled tokens alone.
        """

    def items(self, labels: Tensor) -> int:
        """Number of terms that `loss` sums: one for each piece of the batch."""
        return len(labels)

    # ---- logits to answers and scores

    @abstractmethod
    def collect(self, pieces: Sequence[NDArray[Any]], encoded: Encoded) -> Any:
        """Answers of the N rows from the model's output for each piece: logits (C,) or (T, C).

        Answers are the input of `decode` and `score`: logits (N, C), or a list of plain data.
        """

    @abstractmethod
    def decode(self, answers: Any) -> list[dict[str, Any]]:
        """Answers for users, one plain dict per row."""

    @abstractmethod
    def corpus_scores(
        self, answers: Any, references: Any, names: Sequence[str] | None = None
    ) -> Mapping[str, CorpusScore]:
        """Metrics of the answers by name. With `names`, only those are needed, and others may be left out."""

    def score(self, answers: Any, references: Any) -> dict[str, float]:
        """Every metric by name, the primary one first."""
        scores = self.corpus_scores(answers, references)
        return {name: scores[name].score() for name in sorted(scores, key=lambda name: name != self.metric)}

    def primary_score(self, answers: Any, references: Any) -> CorpusScore:
        """The primary metric. Raises DeltatuneError where these answers do not have it."""
        scores = self.corpus_scores(answers, references, (self.metric,))
        if self.metric not in scores:
            raise DeltatuneError(f"these answers have no {self.metric}")
        return scores[self.metric]

    def resampled(self, answers: Any, references: Any, weights: NDArray[Any]) -> NDArray[Any]:
        """The primary metric (B,) when row i counts weights[b, i] times, weights (B, N): for a bootstrap."""
        return self.primary_score(answers, references).resampled(weights)

    def metric_name(self, metric: str) -> str:
        """A metric for readers, with what its name leaves open."""
        return metric

    def metric_problems(self, of: str) -> list[str]:
        """What is wrong with the primary metric."""
        if self.metric in self.metrics:
            return []
        near = nearest(self.metric, self.metrics)
        return [f"{self.metric!r} is not a metric of {of}{near}; metrics: {', '.join(self.metrics)}"]

    def text_problems(self, of: str) -> list[str]:
        """What is wrong with `text` of a task that reads one column."""
        return [] if len(self.text) == 1 else [f"text must name the one column of {of}, not {len(self.text)}"]

    # ---- plain data

    @abstractmethod
    def describe(self) -> str:
        """One line: the input, the answer and the metric."""

    def to_json(self) -> dict[str, Any]:
        """Plain data that `task_from_json` reads back equal."""
        values = asdict(self)  # type: ignore[call-overload]  # every task is a dataclass
        return {"task": self.name, **{name: _plain(value) for name, value in values.items()}}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Read `to_json`'s result, also one from before `added_fields`.

        Raises DeltatuneError for missing and unknown fields.
        """
        names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
        given = {**cls.added_fields, **{name: value for name, value in data.items() if name != "task"}}
        problems = [f"the stored task lacks {name!r}" for name in names if name not in given]
        unknown = [name for name in given if name not in names]
        raise_all([*problems, *(f"the stored task has {n!r}, which is unknown{nearest(n, names)}" for n in unknown)])
        return cls(**given)


class LanguageModelTask(Task):
    """A task of the language-model head: cross-entropy of the labelled tokens."""

    loads: ClassVar[Loads] = "text"

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy summed over the labelled tokens: logits (M, V), labels (M,) -> scalar."""
        return F.cross_entropy(logits.float(), labels, reduction="sum")

    def items(self, labels: Tensor) -> int:
        """Labelled tokens of the batch."""
        return int((labels != IGNORED).sum())

    def model_loss(self, logits: Tensor, labels: Tensor, outputs: Any, extra_labels: Mapping[str, Tensor]) -> Tensor:
        """Loss of a forward pass, summed over the labelled tokens: `loss`, and the losses of other heads.

        logits (M, V) and labels (M,) are those of the labelled tokens, `outputs` the model's other outputs, and
        `extra_labels` the batch's labels that `Task.extra_labels` names.
        """
        return self.loss(logits, labels)

    def extra_statistics(self, outputs: Any, extra_labels: Mapping[str, Tensor]) -> Tensor | None:
        """More numbers of each row (B, K), which `collect` gets after nll, tokens and hits; None if there are none.

        `extra_labels` holds the labels (M,) of the labelled tokens too, as "labels".
        """
        return None


def token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy summed over the labelled tokens: logits (B, T, C), labels (B, T) -> scalar."""
    return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")


def default_of(cls: type[Any], name: str) -> Any:
    """The default of a field."""
    default = next(field for field in fields(cls) if field.name == name).default
    return None if default is MISSING else default


def _plain(value: Any) -> Any:
    """A value with lists for its tuples, as JSON has them: a stored task equals one that is not stored."""
    return [_plain(each) for each in value] if isinstance(value, tuple) else value
