"""What pretraining objectives do alike: words of a text are asked for, and scored by how surprising they were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from deltatune.core.errors import nearest, raise_all
from deltatune.core.fields import check_fields
from deltatune.tasks.language import likelihood_tallies
from deltatune.tasks.objectives.collator import Collator
from deltatune.tasks.plain import from_plain, to_plain
from deltatune.tasks.tally import Tally, ratio_of
from deltatune.tasks.task import IGNORED, Answers, Encoded

Loads = Literal["mask", "pairs", "words"]
"""What `load_backbone` loads for it: a model that fills in masks, one that judges pairs too, or one that writes."""


@dataclass(frozen=True)
class Objective:
    """-log p of the words that are asked for, summed over them."""

    answers: ClassVar[Answers] = "words"
    loads: ClassVar[Loads] = "words"
    name: ClassVar[str] = ""
    """Under which a stored task is found again."""
    known: ClassVar[tuple[str, ...]] = ("perplexity", "loss", "accuracy")
    least: ClassVar[int] = 2
    """Smallest max_length."""

    text: tuple[str, ...] = ("text",)
    """The column of documents."""
    max_length: int = 256
    """Longest input in tokens; longer documents are read in pieces, and no piece holds parts of two."""
    metric: str = "perplexity"
    """Primary metric, of the words that are asked for."""
    seed: int = 0
    """Of what is asked for in rows that are scored. In training it is drawn anew in every epoch, by its own seed."""

    def __post_init__(self) -> None:
        check_fields(self)
        problems = []
        if self.metric not in self.known:
            near = nearest(self.metric, self.known)
            problems.append(f"{self.metric!r} is no metric of this objective{near}; metrics: {', '.join(self.known)}")
        if len(self.text) != 1:
            problems.append(f"text must name the one column of documents, not {len(self.text)}")
        if self.max_length < self.least:
            problems.append(f"max_length must be at least {self.least}, not {self.max_length}")
        self.check()
        raise_all(problems)

    def check(self) -> None:
        """Raise DeltatuneError for fields of its own that cannot be used."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Of the words that are asked for."""
        return self.known

    def collator(self, tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> Collator:
        """For other loops: encoded rows to a batch, drawn anew each time, with labels as transformers names them.

        `DataLoader(task.encode(rows, tokenizer), collate_fn=task.collator(tokenizer))`, or transformers' Trainer with
        `data_collator=` and `remove_unused_columns=False`.
        """
        return Collator(getattr(self, "draw"), tokenizer, seed)  # noqa: B009 (each objective has its own)

    def make_head(self, config: PretrainedConfig, seed: int = 0, **over: Any) -> nn.Module | None:
        """None: the model's own words are read."""
        return None

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy summed over the tokens that are asked for: logits (M, V), labels (M,) -> scalar."""
        return F.cross_entropy(logits.float(), labels, reduction="sum")

    def items(self, labels: Tensor) -> int:
        """Tokens of the batch that are asked for."""
        return int((labels != IGNORED).sum())

    def collect(self, pieces: Sequence[NDArray[Any]], encoded: Encoded) -> list[dict[str, Any]]:
        """`{"nll", "tokens", "right"}` of each row: nats, tokens asked for, and those that were the likeliest."""
        sums: list[dict[str, Any]] = [{"nll": 0.0, "tokens": 0, "right": 0} for _ in encoded.facts or ()]
        for owner, (nll, tokens, right, *_) in zip(encoded.owners or range(len(pieces)), pieces, strict=True):
            sums[owner]["nll"] += float(nll)
            sums[owner]["tokens"] += int(tokens)
            sums[owner]["right"] += int(right)
        return sums

    def decode(self, answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """`{"perplexity", "loss", "accuracy", "tokens"}` a row."""
        found = []
        for one in answers:
            loss = one["nll"] / max(1, one["tokens"])
            accuracy = one["right"] / max(1, one["tokens"])
            perplexity = float(np.exp(min(loss, 700.0)))
            found.append({"perplexity": perplexity, "loss": loss, "accuracy": accuracy, "tokens": one["tokens"]})
        return found

    def tallies(self, answers: list[dict[str, Any]]) -> dict[str, Tally]:
        """Every metric as sums over the rows."""
        right, tokens = ([one[name] for one in answers] for name in ("right", "tokens"))
        return {**likelihood_tallies(answers, ("perplexity", "loss")), "accuracy": ratio_of(right, tokens)}

    def score(self, answers: list[dict[str, Any]], references: Any) -> dict[str, float]:
        """Every metric by name."""
        return {name: tally.score() for name, tally in self.tallies(answers).items()}

    def resampled(self, answers: Any, references: Any, weights: NDArray[Any]) -> NDArray[Any]:
        """The primary metric (B,) under each row of weights (B, N)."""
        return self.tallies(answers)[self.metric].resampled(weights)

    def to_json(self) -> dict[str, Any]:
        """Plain data that `from_json` reads."""
        return to_plain(self.name, self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Read `to_json`'s result."""
        return from_plain(cls, data)

    def describe(self) -> str:
        """One line."""
        return f"{self.asked()} of the {self.text[0]}, at most {self.max_length} tokens, judged by {self.metric}"

    def asked(self) -> str:
        """What is asked for, in words."""
        return "words"
