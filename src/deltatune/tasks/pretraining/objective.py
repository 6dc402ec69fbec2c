"""Pretraining objective: the likelihood of target tokens of a text."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from deltatune.core.delta import generator_for
from deltatune.core.errors import raise_all
from deltatune.core.input_validation.field_validation import check_fields
from deltatune.data import LabelKind
from deltatune.models.architecture import Answers
from deltatune.tasks.collator import DynamicCollator
from deltatune.tasks.metrics.corpus_score import CorpusScore, ratio_score
from deltatune.tasks.metrics.likelihood_scores import likelihood_scores, perplexity
from deltatune.tasks.task import Encoded, LanguageModelTask, TokenRow


@dataclass(frozen=True)
class Objective(LanguageModelTask):
    """-log p of the target tokens, summed over them."""

    answers: ClassVar[Answers] = "likelihood"
    dynamic: ClassVar[bool] = True
    label_kind: ClassVar[LabelKind] = "raw"
    metrics: ClassVar[tuple[str, ...]] = ("perplexity", "loss", "accuracy")
    shortest: ClassVar[int] = 2
    """Smallest max_length."""

    text: tuple[str, ...] = ("text",)
    """The column of documents."""
    max_length: int = 256
    """Longest input in tokens; longer documents are split, and no piece has text of two documents."""
    metric: str = "perplexity"
    """Primary metric, of the target tokens."""
    seed: int = 0
    """Random seed of the targets in evaluation. Training draws others in every epoch, by its own seed."""

    def __post_init__(self) -> None:
        check_fields(self)
        problems = self.metric_problems("this objective") + self.text_problems("documents")
        if self.max_length < self.shortest:
            problems.append(f"max_length must be at least {self.shortest}, not {self.max_length}")
        self.check()
        raise_all(problems)

    def check(self) -> None:
        """Raise DeltatuneError for invalid fields of the subclass."""

    @abstractmethod
    def draw(self, row: TokenRow, generator: torch.Generator) -> TokenRow:
        """Another random version of an encoded row."""

    def drawn(self, rows: Sequence[TokenRow], owners: Sequence[int], documents: int) -> Encoded:
        """Encoded rows with their first random version, which depends on `seed` and the row's number alone.

        owners: the document (0 to documents - 1) of each row.
        """
        versions = [self.draw(row, generator_for(self.seed, f"draw.{n}")) for n, row in enumerate(rows)]
        nothing: list[Any] = [None] * documents
        return Encoded(versions, 0, owners, nothing, nothing)

    def collator(self, tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> DynamicCollator:
        """A collator for other training loops: draws targets for each batch, with the label names of transformers.

        `DataLoader(task.encode(rows, tokenizer), collate_fn=task.collator(tokenizer))`, or transformers' Trainer with
        `data_collator=` and `remove_unused_columns=False`.
        """
        return DynamicCollator(self.draw, tokenizer, seed)

    def collect(self, pieces: Sequence[NDArray[Any]], encoded: Encoded) -> list[dict[str, Any]]:
        """`{"nll", "tokens", "right"}` of each row: nats, number of targets, and how many were the likeliest token."""
        sums: list[dict[str, Any]] = [{"nll": 0.0, "tokens": 0, "right": 0} for _ in encoded.facts or ()]
        for owner, (nll, tokens, hits, *_) in zip(encoded.owners or range(len(pieces)), pieces, strict=True):
            sums[owner]["nll"] += float(nll)
            sums[owner]["tokens"] += int(tokens)
            sums[owner]["right"] += int(hits)
        return sums

    def decode(self, answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """`{"perplexity", "loss", "accuracy", "tokens"}` per row."""
        decoded = []
        for answer in answers:
            tokens = max(1, answer["tokens"])
            loss, accuracy = answer["nll"] / tokens, answer["right"] / tokens
            scores = {"perplexity": perplexity(loss), "loss": loss, "accuracy": accuracy}
            decoded.append({**scores, "tokens": answer["tokens"]})
        return decoded

    def corpus_scores(
        self, answers: list[dict[str, Any]], references: Any = None, names: Sequence[str] | None = None
    ) -> Mapping[str, CorpusScore]:
        """Every metric; references are not needed."""
        right, tokens = ([answer[name] for answer in answers] for name in ("right", "tokens"))
        return {**likelihood_scores(answers, ("perplexity", "loss")), "accuracy": ratio_score(right, tokens)}

    def describe(self) -> str:
        """One line."""
        return f"{self.target()} of the {self.text[0]}, at most {self.max_length} tokens, scored by {self.metric}"

    @abstractmethod
    def target(self) -> str:
        """What the model predicts, as the start of `describe`."""
