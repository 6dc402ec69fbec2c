"""What tasks have in common whose metrics are sums over their rows, and those that the model's own words answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PretrainedConfig

from deltatune.core.errors import DeltatuneError, nearest
from deltatune.tasks.metrics.additive import Tally
from deltatune.tasks.task import IGNORED, from_plain, to_plain


class Tallied:
    """A task whose metrics are sums over its rows: `metrics` says what they are, `tallies` how they add up."""

    name: ClassVar[str]
    """Under which a stored task is found again."""
    metric: str
    metrics: Any

    def tallies(self, answers: Any, references: Any) -> dict[str, Tally]:
        """Every metric as sums over the rows."""
        raise NotImplementedError

    def score(self, answers: Any, references: Any) -> dict[str, float]:
        """Every metric by name, the primary one first."""
        found = self.tallies(answers, references)
        order = sorted(found, key=lambda name: name != self.metric)
        return {name: found[name].score() for name in order}

    def primary(self, answers: Any, references: Any) -> Tally:
        """The primary metric. Raises DeltatuneError for answers that say nothing of it."""
        found = self.tallies(answers, references)
        if self.metric not in found:
            raise DeltatuneError(f"these answers say nothing of {self.metric}")
        return found[self.metric]

    def resampled(self, answers: Any, references: Any, weights: NDArray[Any]) -> NDArray[Any]:
        """The primary metric (B,) under each row of weights (B, N)."""
        return self.primary(answers, references).resampled(weights)

    def metric_problems(self, of: str, known: Sequence[str]) -> list[str]:
        """What is wrong with the primary metric."""
        if self.metric in known:
            return []
        return [f"{self.metric!r} is no metric of {of}{nearest(self.metric, known)}; metrics: {', '.join(known)}"]

    def to_json(self) -> dict[str, Any]:
        """Plain data that `from_json` reads."""
        return to_plain(self.name, self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Read `to_json`'s result. Raises DeltatuneError for missing and unknown fields."""
        return from_plain(cls, data)


class Worded(Tallied):
    """A task that the model's own words answer: nothing but the likelihood of words is learnt."""

    def make_head(self, config: PretrainedConfig, seed: int = 0, **over: Any) -> nn.Module | None:
        """None: the model's own words are read."""
        return None

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy summed over the labelled tokens: logits (M, V), labels (M,) -> scalar."""
        return F.cross_entropy(logits.float(), labels, reduction="sum")

    def items(self, labels: Tensor) -> int:
        """Labelled tokens of the batch."""
        return int((labels != IGNORED).sum())
