"""Multi-label classification: any number of labels for a text or a pair of texts, one binary decision each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from deltatune.core.errors import nearest
from deltatune.core.input_validation.strict_json import loads
from deltatune.data import LabelKind
from deltatune.tasks.classification import Classify, check_finite
from deltatune.tasks.metrics.corpus_score import AdditiveScore, CorpusScore, Floats, mean_score, ratio
from deltatune.tasks.row_columns import column, raise_listed
from deltatune.tasks.task import Row

METRICS = ("f1_micro", "f1_macro", "accuracy", "hamming")
"""F1 over all decisions, its mean over labels, exact sets, and single decisions."""


@dataclass(frozen=True)
class MultiLabel(Classify):
    """A set of labels; a label is in it if its probability is above one half."""

    name: ClassVar[str] = "many"
    metrics: ClassVar[tuple[str, ...]] = METRICS
    label_kind: ClassVar[LabelKind] = "many"
    inference_fields: ClassVar[tuple[str, ...]] = ("metric",)

    metric: str = ""
    """Primary metric; by default f1_micro. accuracy: the whole set is right; hamming: the share of right decisions."""

    def _labels(self, rows: Sequence[Row]) -> Any:
        flags, problems = [], []
        for i, value in enumerate(column(rows, self.label)):
            given = parse_json_list(value) if isinstance(value, str) else value
            if not isinstance(given, (list, tuple)):
                problems.append(f"row {i}: {self.label} is {value!r}, not a list of labels")
                continue
            unknown = [label for label in given if label not in self.labels]
            problems += [f"row {i}: {label!r} is not a label{nearest(str(label), self.labels)}" for label in unknown]
            flags.append([float(label in given) for label in self.labels])
        raise_listed(problems, f"labels of this task: {', '.join(map(repr, self.labels[:20]))}")
        return flags

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Binary cross-entropy, mean over the labels, summed over the rows: (B, C) both -> scalar."""
        losses = F.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="none")
        return losses.mean(-1).sum()

    def predictions(self, logits: NDArray[Any]) -> NDArray[Any]:
        """0 or 1 for each row and label (N, C)."""
        return (check_finite(logits) > 0).astype(np.int64)

    def decode(self, logits: NDArray[Any]) -> list[dict[str, Any]]:
        """`{"labels": [...], "scores": {label: probability}}` per row."""
        with np.errstate(over="ignore"):  # of a logit far below 0: the probability is 0
            probabilities = 1 / (1 + np.exp(-check_finite(logits).astype(np.float64)))
        return [
            {
                "labels": [label for label, probability in zip(self.labels, row, strict=True) if probability > 0.5],
                "scores": dict(zip(self.labels, row, strict=True)),
            }
            for row in probabilities.tolist()
        ]

    def corpus_scores(
        self, answers: NDArray[Any], references: Any, names: Sequence[str] | None = None
    ) -> Mapping[str, CorpusScore]:
        """Every metric, for logits and references (N, C)."""
        predicted, true = self.predictions(answers), (np.asarray(references) > 0.5).astype(np.int64)
        right = predicted == true
        counts = np.stack([predicted * true, predicted + true], -1).astype(np.float64)  # (N, C, 2)
        return {
            "f1_micro": AdditiveScore(counts.sum(1), lambda sums: ratio(2 * sums[..., 0], sums[..., 1])),
            "f1_macro": AdditiveScore(counts.reshape(len(predicted), -1), self._macro),
            "accuracy": mean_score(right.all(-1)),
            "hamming": mean_score(right.mean(-1)),
        }

    def _macro(self, sums: Floats) -> Floats:
        counts = sums.reshape(*sums.shape[:-1], len(self.labels), 2)
        return np.asarray(ratio(2 * counts[..., 0], counts[..., 1]).mean(-1), dtype=np.float64)

    def measure(self, predictions: NDArray[Any], references: NDArray[Any]) -> float:
        """The primary metric of decisions (N, C)."""
        return self.primary_score(predictions - 0.5, references).score()

    def describe(self) -> str:
        """One line."""
        columns = " and ".join(self.text)
        return f"any of {len(self.labels)} labels for {columns}, {self._limit()}scored by {self.metric}"


def parse_json_list(text: str) -> Any:
    """A list written as JSON; other text as it is."""
    try:
        return loads(text, "the labels")
    except ValueError:
        return text
