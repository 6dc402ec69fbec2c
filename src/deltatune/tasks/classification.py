"""Classification and regression of a text or a pair of texts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.core.input_validation.field_validation import check_fields
from deltatune.data import LabelKind
from deltatune.data.media.media_files import Inputs
from deltatune.models.architecture import Answers, has_class_token, sees_all_at_last_token, state_width
from deltatune.models.processors import LONGEST_SECONDS
from deltatune.tasks.entity_markers import MarkedText, check_kept, check_markers, mark_entities, mark_problems
from deltatune.tasks.heads import HeadConfig
from deltatune.tasks.media_rows import encode_files
from deltatune.tasks.metrics.classification_and_regression import (
    CLASS_METRICS,
    POSITIVE_METRICS,
    REGRESSION_METRICS,
    weighted_score,
)
from deltatune.tasks.metrics.corpus_score import CorpusScore
from deltatune.tasks.metrics.positive_class import positive_class
from deltatune.tasks.row_columns import column, raise_listed, text_column
from deltatune.tasks.task import Encoded, Row, Task
from deltatune.tasks.tokenization import check_length, need_offsets, tokenise


@dataclass(frozen=True)
class Classify(Task):
    """One label, or one number, for a text, a pair of texts or several."""

    name: ClassVar[str] = "classify"
    answers: ClassVar[Answers] = "row"
    inference_fields: ClassVar[tuple[str, ...]] = ("metric", "positive")
    added_fields: ClassVar[Mapping[str, Any]] = {"mark": (), "inputs": "text", "max_seconds": LONGEST_SECONDS}
    may_be_unanswered: ClassVar[bool] = False
    """Whether logits that are all -inf say that there is no answer, which is wrong for every class."""

    labels: tuple[str, ...] = ()
    """The class names in the order of the logits; empty for regression."""
    text: tuple[str, ...] = ("text",)
    """The text columns. Two are encoded as the tokenizer's pair; of more, all but the first are segment B."""
    label: str = "label"
    """The label column."""
    max_length: int = 256
    """Longest input in tokens, special ones included."""
    metric: str = ""
    """Primary metric; by default accuracy, for regression pearson."""
    too_long: Literal["truncate", "error"] = "truncate"
    """Whether longer texts are truncated (and counted) or are an error."""
    center: float = 0.0
    """For regression: the value of a logit of 0. Commands use the mean of the training rows."""
    scale: float = 1.0
    """For regression: what a logit of 1 adds to the center. Commands use the training rows' standard deviation."""
    positive: str = ""
    """The class that f1, precision and recall are of. Default for two classes: the one that its name says (1, yes,
    positive, equivalent, entailment, ...), else the last; for more classes the three are means over all of them."""
    mark: tuple[str, ...] = ()
    """Columns of one or two entities that are marked in the first text, for relation extraction: COLUMN, or
    COLUMN:TYPE_COLUMN to name the entity's type in the marker too."""
    inputs: Inputs = "text"
    """What a row is: text, or the image or the sound in the file that its column names."""
    max_seconds: float = LONGEST_SECONDS
    """Longest sound in seconds; commands use the longest one of the training rows, at most 30."""

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "metric", self.metric or self.metrics[0])
        if len(self.labels) == 2 and self.label_kind == "classes":
            object.__setattr__(self, "positive", self.positive or positive_class(self.labels) or self.labels[1])
        problems = self.metric_problems("classification" if self.labels else "regression")
        if len(self.labels) == 1:
            problems.append(f"there is only one class, {self.labels[0]!r}: nothing can be learned from that")
        if len(set(self.labels)) < len(self.labels):
            problems.append(f"labels name a class twice: {', '.join(self.labels)}")
        if not self.text:
            problems.append("text must name at least one column")
        problems += mark_problems(self.mark, self.text)
        if self.inputs != "text" and (len(self.text) > 1 or self.mark):
            problems.append(f"a row of {self.inputs} files has one column of them, and no marked entities")
        if not 0 < self.max_seconds < math.inf:
            problems.append(f"max_seconds={self.max_seconds} must be positive and finite")
        if self.labels and (self.center, self.scale) != (0, 1):
            problems.append("center and scale are for regression; leave them out of a classification")
        if not (math.isfinite(self.center) and 0 < self.scale < math.inf):
            problems.append(f"center={self.center} must be finite and scale={self.scale} positive and finite")
        if self.positive and self.label_kind != "classes":
            problems.append(f"positive={self.positive!r} is for one class a row; leave it out")
        elif self.positive and self.positive not in self.labels:
            near = nearest(self.positive, self.labels)
            problems.append(f"positive={self.positive!r} is not a class{near}; classes: {listed(self.labels)}")
        raise_all(problems)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Read `to_json`'s result; before `positive` was stored, the last of two classes was the positive one."""
        labels = data.get("labels")
        last = labels[-1] if cls is Classify and isinstance(labels, list | tuple) and len(labels) == 2 else ""
        return super().from_json({"positive": last, **data})

    # --- text to tokens ---

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
        """Tokenise rows with the tokenizer's own handling of pairs; rows longer than max_length are cut and counted.

        Raises DeltatuneError for a missing column, a label outside `labels`, a row without tokens, entities that are
        not in their text or are cut off, and a max_length that the model has no positions for. One error lists all bad
        rows.
        """
        if self.inputs != "text":
            return self._encode_files(rows, tokenizer, labelled)
        check_length(self.max_length, positions, positions_taken)
        marked = self._marked(rows, tokenizer)
        texts = self._texts(rows, marked)
        labels = self._labels(rows) if labelled else None
        encoded = tokenise(texts, tokenizer)
        too_long = [i for i, row in enumerate(encoded) if len(row["input_ids"]) > self.max_length]
        if too_long and self.too_long == "error":
            share = f"{len(too_long)} of {len(encoded)} texts are longer than max_length={self.max_length} tokens"
            raise DeltatuneError(f"{share}, first row {too_long[0]}; raise max_length or choose too_long='truncate'")
        truncated = tokenise([texts[i] for i in too_long], tokenizer, self.max_length)
        for i, row in zip(too_long, truncated, strict=True):
            encoded[i] = row
        if marked:
            check_kept({i: marked[i] for i in too_long}, texts, tokenizer, self.max_length)
        raise_listed(
            [
                f"row {i} has no tokens: {' | '.join(texts[i])!r}"
                for i, row in enumerate(encoded)
                if not row["input_ids"]
            ]
        )
        for row, label in zip(encoded, labels or [], strict=labelled):
            row["label"] = label
        return Encoded(encoded, truncated=len(too_long))

    def _encode_files(self, rows: Sequence[Row], processor: Any, labelled: bool) -> Encoded:
        labels = self._labels(rows) if labelled else None
        must_fit = self.too_long == "error"
        encoded = encode_files(rows, self.text[0], processor, self.inputs, self.max_seconds, must_fit)
        for row, label in zip(encoded, labels or [], strict=labelled):
            row["label"] = label
        return encoded

    def to_json(self) -> dict[str, Any]:
        """Plain data; of text without the fields of files."""
        left_out = {"text": ("inputs", "max_seconds"), "image": ("max_seconds",), "audio": ()}[self.inputs]
        return {name: value for name, value in super().to_json().items() if name not in left_out}

    def _texts(self, rows: Sequence[Row], marked: Sequence[MarkedText] = ()) -> list[tuple[str, ...]]:
        names = self.text[1:] if marked else self.text
        columns = [[row.text for row in marked]] if marked else []
        return list(zip(*columns, *(self._column(rows, name) for name in names), strict=True))

    def _column(self, rows: Sequence[Row], name: str) -> list[str]:
        """The texts of a column; words in lists are joined by blanks."""
        values = [joined_words(value) for value in column(rows, name)]
        return text_column([{name: value} for value in values], name)

    def _marked(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> list[MarkedText]:
        if not self.mark:
            return []
        need_offsets(tokenizer, "an entity that is marked")
        check_markers(tokenizer)
        return mark_entities(rows, self.text[0], self.mark)

    def _labels(self, rows: Sequence[Row]) -> Any:
        values = column(rows, self.label)
        return self.class_numbers(values) if self.labels else self._numbers(values)

    def class_numbers(self, values: list[Any]) -> list[int]:
        """The numbers of classes by their names. Raises DeltatuneError listing names that are no class."""
        number = {label: i for i, label in enumerate(self.labels)}
        wrong = [f"row {i}: {value!r} is not a label" for i, value in enumerate(values) if str(value) not in number]
        raise_listed(wrong, f"labels of this task: {listed(self.labels)}")
        return [number[str(value)] for value in values]

    def _numbers(self, values: list[Any]) -> list[float]:
        wrong = [f"row {i}: {self.label} is {value!r}" for i, value in enumerate(values) if not is_number(value)]
        raise_listed(wrong, "regression needs a finite number in every row; name the classes in labels to classify")
        return [float(value) for value in values]

    # --- logits to a loss, answers and scores ---

    @property
    def outputs(self) -> int:
        """C, the number of logits per row."""
        return len(self.labels) or 1

    def head_config(self, config: PretrainedConfig, **over: Any) -> HeadConfig:
        """Mean pooling on encoders, the last token on decoders and encoder-decoders, a vision model's class token."""
        if self.inputs != "text":
            pooling = "cls" if has_class_token(config) else "mean"
            fields: dict[str, Any] = {"pooling": pooling, "outputs": self.outputs, "width": state_width(config)}
            return HeadConfig(**fields | over)
        text = config.get_text_config()
        pooling = "last" if sees_all_at_last_token(text) else "mean"
        return HeadConfig(**{"pooling": pooling, "outputs": self.outputs, "width": text.hidden_size} | over)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy, or squared error in units of the scale, summed: logits (B, C), labels (B,) -> scalar."""
        if self.labels:
            return F.cross_entropy(logits.float(), labels, reduction="sum")
        targets = (labels.float() - self.center) / self.scale
        return F.mse_loss(logits[:, 0].float(), targets, reduction="sum")

    def collect(self, pieces: Sequence[NDArray[Any]], encoded: Encoded) -> NDArray[Any]:
        """Logits (N, C); each row is one piece."""
        return np.stack(pieces) if len(pieces) else np.zeros((0, self.outputs), np.float32)

    def predictions(self, logits: NDArray[Any]) -> NDArray[Any]:
        """Class numbers or values (N,) of logits (N, C); -1 for no answer.

        Raises DeltatuneError for logits that are not finite.
        """
        unanswered = np.isneginf(logits).all(1) if self.may_be_unanswered else np.zeros(len(logits), np.bool_)
        check_finite(logits[~unanswered])
        if not self.labels:
            return logits[:, 0].astype(np.float64) * self.scale + self.center
        return np.where(unanswered, -1, logits.argmax(1))

    def decode(self, logits: NDArray[Any]) -> list[dict[str, Any]]:
        """Logits (N, C) to `{"label", "score", "scores": {label: probability}}`; `{"value"}` for regression.

        The label of a row without an answer is None, and its scores are 0.
        """
        predictions = self.predictions(logits)
        if not self.labels:
            return [{"value": float(value)} for value in predictions]
        answered = (predictions >= 0)[:, None]
        shares = softmax(np.where(answered, logits, 0)) * answered
        return [
            {
                "label": self.labels[best] if best >= 0 else None,
                "score": max(row),
                "scores": dict(zip(self.labels, row, strict=True)),
            }
            for best, row in zip(predictions.tolist(), shares.tolist(), strict=True)
        ]

    def corpus_scores(
        self, answers: NDArray[Any], references: Any, names: Sequence[str] | None = None
    ) -> Mapping[str, CorpusScore]:
        """Metrics by name, for logits (N, C) and references (N,)."""
        predictions = self.predictions(answers)
        return {name: self._score(name, predictions, references) for name in names or self.metrics}

    def _score(self, name: str, predictions: NDArray[Any], references: Any) -> CorpusScore:
        positive = self.labels.index(self.positive) if self.positive else None
        return weighted_score(name, predictions, references, len(self.labels), positive)

    def measure(self, predictions: NDArray[Any], references: NDArray[Any]) -> float:
        """The primary metric of predictions and references, both (N,)."""
        return self._score(self.metric, predictions, references).score()

    @property
    def metrics(self) -> tuple[str, ...]:
        """Accuracy, F1, precision, recall and Matthews of classes; Pearson, Spearman and squared error of numbers."""
        return tuple(CLASS_METRICS) if self.labels else tuple(REGRESSION_METRICS)

    @property
    def label_kind(self) -> LabelKind:
        """One class or one number per row."""
        return "classes" if self.labels else "number"

    def describe(self) -> str:
        """One sentence."""
        answer = f"one of {len(self.labels)} labels" if self.labels else "a number"
        metric = self.metric_name(self.metric)
        return f"{answer} for {' and '.join(self.text)}, {self._limit()}scored by {metric}"

    def _limit(self) -> str:
        """The longest input, in a sentence."""
        if self.inputs == "image":
            return ""
        return f"at most {self.max_length} tokens, " if self.inputs == "text" else f"at most {self.max_seconds:g} s, "

    def metric_name(self, metric: str) -> str:
        """A metric with the class that it is of: f1 (positive: spam)."""
        return f"{metric} (positive: {self.positive})" if self.positive and metric in POSITIVE_METRICS else metric


def joined_words(value: Any) -> Any:
    """A list of words as one text; other values as they are."""
    words = isinstance(value, (list, tuple)) and value and all(isinstance(word, str) for word in value)
    return " ".join(value) if words else value


def listed(labels: Sequence[str]) -> str:
    """The first 20 class names."""
    return ", ".join(map(repr, labels[:20])) + (", ..." if len(labels) > 20 else "")


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, or text of one."""
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


def check_finite(logits: NDArray[Any]) -> NDArray[Any]:
    """The logits (N, C) as they are. Raises DeltatuneError if some are not finite."""
    if not np.isfinite(logits).all():
        bad = int((~np.isfinite(logits)).any(1).sum())
        raise DeltatuneError(
            f"{bad} of {len(logits)} rows have logits that are not finite; was the learning rate too high?"
        )
    return logits


def softmax(logits: NDArray[Any]) -> NDArray[Any]:
    """Probabilities along the last axis."""
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities: NDArray[Any] = exponentials / exponentials.sum(-1, keepdims=True)
    return probabilities
