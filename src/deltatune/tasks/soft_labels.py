"""SoftLabels: a classification trained on scores of the classes that a teacher gave, instead of one class a row."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from deltatune.core.errors import DeltatuneError
from deltatune.tasks.classification import Classify, check_finite
from deltatune.tasks.task import Encoded


@dataclass(frozen=True)
class SoftLabels(Classify):
    """T² · KL(softmax(z / T) ‖ softmax(ŷ / T)) for a teacher's scores z, and logits ŷ

    Hinton et al. 2015, https://arxiv.org/abs/1503.02531. It is for training alone: what it trains answers as the
    classification does, and is stored as that.
    """

    name: ClassVar[str] = "soft-labels"

    temperature: float = 2.0
    """T: above 1, the teacher's second choices count for more. PET has 2."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.labels:
            raise DeltatuneError("soft labels are scores of classes; this task has numbers")
        if self.temperature <= 0:
            raise DeltatuneError(f"temperature must be above 0, not {self.temperature}")

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The divergence summed over the rows: logits (B, C), a teacher's scores (B, C) -> scalar.

        The factor T² keeps the size of the gradients, which the temperature divides by T².
        """
        teacher = (labels.float() / self.temperature).log_softmax(1)
        student = (logits.float() / self.temperature).log_softmax(1)
        return self.temperature**2 * F.kl_div(student, teacher, reduction="sum", log_target=True)


def soft_labels(task: Classify, temperature: float) -> SoftLabels:
    """The task that trains a classifier for `task` on a teacher's scores."""
    return SoftLabels(**plain_fields(task), temperature=temperature)


def plain_fields(task: Classify) -> dict[str, Any]:
    """The fields of a classification, without those that a subclass adds."""
    return {field.name: getattr(task, field.name) for field in fields(Classify)}


def with_scores(encoded: Encoded, scores: NDArray[Any]) -> Encoded:
    """Encoded rows, each of one piece, with a teacher's scores (N, C) as labels.

    Raises DeltatuneError for another number of rows, and for scores that are not finite.
    """
    if len(encoded) != len(scores):
        raise DeltatuneError(f"there are scores of {len(scores)} rows for {len(encoded)} rows; give one for each")
    labels = check_finite(scores).tolist()
    rows = [{**row, "label": values} for row, values in zip(encoded, labels, strict=True)]
    return replace(encoded, rows=rows)
