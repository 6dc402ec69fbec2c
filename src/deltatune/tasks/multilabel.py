"""Multi-label classification: any number of labels for a text or a pair of texts, each decided on its own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from deltatune.core.errors import nearest
from deltatune.data import Kind
from deltatune.tasks.classification import Classify, finite
from deltatune.tasks.metrics.corpus_score import AdditiveScore, CorpusScore, mean_score, ratio
from deltatune.tasks.task import Row, column, raise_listed

METRICS = ("f1_micro", "f1_macro", "accuracy", "hamming")


@dataclass(frozen=True)
class ManyLabels(Classify):
    """A set of labels; a label is given where its probability is above one half."""

    name: ClassVar[str] = "many"

    metric: str = ""
    """Primary metric; by default f1_micro. accuracy: the whole set is right; hamming: the share of right decisions."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """F1 over all decisions, its mean over labels, exact sets, and single decisions."""
        return METRICS

    @property
    def data_kind(self) -> Kind:
        """Any number of labels per row."""
        return "many"

    def _labels(self, rows: Sequence[Row]) -> Any:
        found, problems = [], []
        for i, value in enumerate(column(rows, self.label)):
            given = from_json_list(value) if isinstance(value, str) else value
            if not isinstance(given, (list, tuple)):
                problems.append(f"row {i}: {self.label} is {value!r}, not a list of labels")
                continue
            unknown = [one for one in given if one not in self.labels]
            problems += [f"row {i}: {one!r} is no label{nearest(str(one), self.labels)}" for one in unknown]
            found.append([float(label in given) for label in self.labels])
        raise_listed(problems, f"labels known to this task: {', '.join(map(repr, self.labels[:20]))}")
        return found

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Binary cross-entropy, mean over the labels, summed over the rows: (B, C) both -> scalar."""
        each = F.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="none")
        return each.mean(-1).sum()

    def predictions(self, logits: NDArray[Any]) -> NDArray[Any]:
        """0 or 1 for each row and label (N, C)."""
        return (finite(logits) > 0).astype(np.int64)

    def decode(self, logits: NDArray[Any]) -> list[dict[str, Any]]:
        """`{"labels": [...], "scores": {label: probability}}` a row."""
        chances = 1 / (1 + np.exp(-finite(logits).astype(np.float64)))
        return [
            {
                "labels": [label for label, chance in zip(self.labels, row, strict=True) if chance > 0.5],
                "scores": dict(zip(self.labels, row, strict=True)),
            }
            for row in chances.tolist()
        ]

    def corpus_scores(
        self, answers: NDArray[Any], references: Any, names: Sequence[str] | None = None
    ) -> Mapping[str, CorpusScore]:
        """Every metric, for logits and references (N, C)."""
        found, there = self.predictions(answers), np.asarray(references) > 0.5
        right = found == there
        hits, all_found, all_there = (found * there), found, there.astype(np.int64)  # (N, C) each
        counts = np.stack([hits, all_found + all_there], -1).astype(np.float64)  # (N, C, 2)
        return {
            "f1_micro": AdditiveScore(counts.sum(1), lambda sums: ratio(2 * sums[..., 0], sums[..., 1])),
            "f1_macro": AdditiveScore(counts.reshape(len(found), -1), self._macro),
            "accuracy": mean_score(right.all(-1).astype(np.float64)),
            "hamming": mean_score(right.mean(-1)),
        }

    def _macro(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        each = sums.reshape(*sums.shape[:-1], len(self.labels), 2)
        found: NDArray[np.float64] = ratio(2 * each[..., 0], each[..., 1]).mean(-1)
        return found

    def measure(self, predictions: NDArray[Any], references: NDArray[Any]) -> float:
        """The primary metric of decisions (N, C)."""
        return self.corpus_scores(predictions - 0.5, references)[self.metric].score()

    def describe(self) -> str:
        """One line."""
        what = f"any of {len(self.labels)} labels for {' and '.join(self.text)}"
        return f"{what}, at most {self.max_length} tokens, judged by {self.metric}"


def from_json_list(text: str) -> Any:
    """A list written as JSON; other text as it is."""
    try:
        return json.loads(text)
    except ValueError:
        return text
