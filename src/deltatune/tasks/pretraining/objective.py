"""What pretraining objectives do alike: words of a text are asked for, and scored by how surprising they were."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from deltatune.core.errors import raise_all
from deltatune.core.validation import check_fields
from deltatune.data import LabelKind
from deltatune.models.architecture import Answers
from deltatune.tasks.collator import DynamicCollator
from deltatune.tasks.metrics.corpus_score import CorpusScore, ratio_score
from deltatune.tasks.metrics.likelihood_scores import likelihood_scores, perplexity
from deltatune.tasks.task import Encoded, LanguageModelTask, TokenRow


@dataclass(frozen=True)
class Objective(LanguageModelTask):
    """-log p of the words that are asked for, summed over them."""

    answers: ClassVar[Answers] = "words"
    dynamic: ClassVar[bool] = True
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
        problems = self.metric_problems("this objective", self.known)
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

    @property
    def label_kind(self) -> LabelKind:
        """Texts without labels."""
        return "raw"

    @abstractmethod
    def draw(self, row: TokenRow, generator: torch.Generator) -> TokenRow:
        """Another random version of an encoded row."""

    def collator(self, tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> DynamicCollator:
        """For other loops: encoded rows to a batch, drawn anew each time, with labels as transformers names them.

        `DataLoader(task.encode(rows, tokenizer), collate_fn=task.collator(tokenizer))`, or transformers' Trainer with
        `data_collator=` and `remove_unused_columns=False`.
        """
        return DynamicCollator(self.draw, tokenizer, seed)

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
            found.append({"perplexity": perplexity(loss), "loss": loss, "accuracy": accuracy, "tokens": one["tokens"]})
        return found

    def corpus_scores(
        self, answers: list[dict[str, Any]], references: Any = None, names: Sequence[str] | None = None
    ) -> Mapping[str, CorpusScore]:
        """Every metric; references are not needed."""
        right, tokens = ([answer[name] for answer in answers] for name in ("right", "tokens"))
        return {**likelihood_scores(answers, ("perplexity", "loss")), "accuracy": ratio_score(right, tokens)}

    def describe(self) -> str:
        """One line."""
        return f"{self.asked()} of the {self.text[0]}, at most {self.max_length} tokens, judged by {self.metric}"

    def asked(self) -> str:
        """What is asked for, in words."""
        return "words"
