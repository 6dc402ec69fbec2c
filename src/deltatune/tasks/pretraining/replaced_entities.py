"""Replaced-entity detection: which entities of a text were replaced by others of their kind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from deltatune.core.delta import generator_for
from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.input_validation.field_validation import check_fields
from deltatune.data import LabelKind
from deltatune.models.architecture import Answers
from deltatune.tasks.heads import HeadConfig, token_head
from deltatune.tasks.metrics.corpus_score import AdditiveScore, CorpusScore, ratio, ratio_score
from deltatune.tasks.pretraining.masking import Entity, parse_entities, units_of_spans
from deltatune.tasks.pretraining.random_draws import random_integer, uniform
from deltatune.tasks.row_columns import column, text_column
from deltatune.tasks.task import IGNORED, Encoded, Row, Task, TokenRow, token_loss
from deltatune.tasks.tokenization import check_length, need_offsets, token_row

METRICS = ("f1", "accuracy", "precision", "recall")


@dataclass(frozen=True)
class ReplacedEntities(Task):
    """-log p(replaced | text, entity) for each entity     Xiong et al. 2020 (WKLM), https://arxiv.org/abs/1912.09637

    About a third of the entities are replaced by others of their kind, never two in a row, in `copies` versions of each
    text. A head on every token predicts it at an entity's first token; WKLM uses the two tokens around an entity.
    """

    name: ClassVar[str] = "replaced"
    answers: ClassVar[Answers] = "token"
    metrics: ClassVar[tuple[str, ...]] = METRICS
    label_kind: ClassVar[LabelKind] = "raw"

    text: tuple[str, ...] = ("text",)
    """The column of texts."""
    entities: str = "entities"
    """The column of spans, [[start, end, kind], ...] in characters; `with_entities` adds one."""
    max_length: int = 256
    """Longest input in tokens; entities beyond it are left out."""
    metric: str = "f1"
    """Primary metric, of the replaced entities."""
    rate: float = 0.5
    """Probability with which an entity that can be replaced is."""
    copies: int = 10
    """Number of versions of each text."""
    seed: int = 0
    """Random seed of the replacements."""

    def __post_init__(self) -> None:
        check_fields(self)
        problems = self.metric_problems("replaced entities") + self.text_problems("texts")
        if not 0 < self.rate <= 1 or self.copies < 1:
            problems.append(f"rate={self.rate} must be more than 0 and at most 1, and copies={self.copies} 1 or more")
        raise_all(problems)

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
        """Replace entities in `copies` versions of each text and tokenise them; without labels, the texts as they are.

        Raises DeltatuneError for missing columns, a tokenizer without offsets, a max_length that the model has no
        positions for, entities outside their text or that overlap, and rows in which no entity can be replaced.
        """
        check_length(self.max_length, positions, positions_taken)
        need_offsets(tokenizer, "replacing entities")
        texts = text_column(rows, self.text[0])
        spans = column(rows, self.entities)
        entities = [
            parse_entities(text, row or (), f"row {i}") for i, (text, row) in enumerate(zip(texts, spans, strict=True))
        ]
        names = entity_names(zip(texts, entities, strict=True))
        if labelled and rows and all(len(of_kind) < 2 for of_kind in names.values()):
            raise DeltatuneError(
                f"no entity can be replaced: no kind has two names in the column {self.entities!r} of these rows"
            )
        pieces: list[TokenRow] = []
        first_tokens: list[list[int | None]] = []
        truth: list[list[bool]] = []
        truncated = 0
        for copy in range(self.copies if labelled else 1):
            for i, (text, row) in enumerate(zip(texts, entities, strict=True)):
                version = ReplacedText(text, row, [False] * len(row))
                if labelled:
                    version = replace_entities(
                        text, row, names, generator_for(self.seed, f"draw.{copy}.{i}"), self.rate
                    )
                tokens, firsts = self._row(version.text, version.entities, tokenizer)
                truncated += None in firsts
                tokens["labels"] = [IGNORED] * len(tokens["input_ids"])
                for index, replaced in zip(firsts, version.replaced, strict=True):
                    if index is not None:
                        tokens["labels"][index] = int(replaced)
                pieces.append(tokens)
                first_tokens.append(firsts)
                truth.append(version.replaced)
        return Encoded(pieces, truncated, range(len(pieces)), first_tokens, truth)

    def _row(
        self, text: str, entities: Sequence[Entity], tokenizer: PreTrainedTokenizerBase
    ) -> tuple[TokenRow, list[int | None]]:
        """Tokens of a text, and the index of the first token of each entity (None: it was cut off)."""
        encoding = tokenizer(
            [text], truncation=True, max_length=self.max_length, return_offsets_mapping=True, verbose=False,
            return_special_tokens_mask=True, return_attention_mask=True,
        )  # fmt: skip
        special = [bool(flag) for flag in encoding["special_tokens_mask"][0]]
        units = [units_of_spans([entity], encoding["offset_mapping"][0], special) for entity in entities]
        return token_row(encoding, 0), [unit[0][0] if unit else None for unit in units]

    def head_config(self, config: PretrainedConfig, **over: Any) -> HeadConfig:
        """A head that classifies every token."""
        return token_head(config, 2, **over)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy summed over the entities: logits (B, T, 2), labels (B, T) -> scalar."""
        return token_loss(logits, labels)

    def items(self, labels: Tensor) -> int:
        """Entities of the batch."""
        return int((labels != IGNORED).sum())

    def collect(self, pieces: Sequence[NDArray[Any]], encoded: Encoded) -> list[list[float | None]]:
        """For each entity of each text the probability that it was replaced; None where it was cut off."""
        answers: list[list[float | None]] = []
        for logits, firsts in zip(pieces, encoded.facts or (), strict=True):
            if not np.isfinite(logits).all():
                raise DeltatuneError("a row has logits that are not finite; was the learning rate too high?")
            log_odds = logits[:, 1] - logits[:, 0]
            answers.append([None if index is None else float(1 / (1 + np.exp(-log_odds[index]))) for index in firsts])
        return answers

    def decode(self, answers: list[list[float | None]]) -> list[dict[str, Any]]:
        """`{"replaced": [probabilities]}` per text."""
        return [{"replaced": probabilities} for probabilities in answers]

    def corpus_scores(
        self, answers: list[list[float | None]], references: Any, names: Sequence[str] | None = None
    ) -> Mapping[str, CorpusScore]:
        """Every metric; entities that were cut off are not counted."""
        sums = np.zeros((len(answers), 4))
        for row, (probabilities, truth) in enumerate(zip(answers, references, strict=True)):
            for probability, replaced in zip(probabilities, truth, strict=True):
                if probability is not None:
                    sums[row, 2 * (probability > 0.5) + replaced] += 1
        missed, false, hit = sums[:, 1], sums[:, 2], sums[:, 3]
        return {
            "f1": AdditiveScore(sums, lambda s: ratio(2 * s[..., 3], 2 * s[..., 3] + s[..., 1] + s[..., 2])),
            "accuracy": ratio_score(sums[:, 0] + hit, sums.sum(1)),
            "precision": ratio_score(hit, hit + false),
            "recall": ratio_score(hit, hit + missed),
        }

    def describe(self) -> str:
        """One line."""
        answer = f"which entities in the {self.text[0]} were replaced"
        return f"{answer}, at most {self.max_length} tokens, scored by {self.metric}"


# ---- replacement


class ReplacedText(NamedTuple):
    """A text in which some entities are replaced, their spans in it, and whether each is replaced."""

    text: str
    entities: list[Entity]
    replaced: list[bool]


def entity_names(texts: Iterable[tuple[str, Sequence[Entity]]]) -> dict[str, tuple[str, ...]]:
    """The distinct names of each kind in a corpus, sorted; replacements are drawn from them."""
    names: dict[str, set[str]] = {}
    for text, entities in texts:
        for entity in entities:
            names.setdefault(entity.kind, set()).add(text[entity.start : entity.end])
    return {kind: tuple(sorted(of_kind)) for kind, of_kind in sorted(names.items())}


def replace_entities(
    text: str,
    entities: Sequence[Entity],
    names: Mapping[str, Sequence[str]],
    generator: torch.Generator,
    rate: float = 0.5,
) -> ReplacedText:
    """Replace entities, each with probability `rate`, by another name of their kind.

    As in WKLM the entity after a replaced one is kept, so that replaced entities have original neighbours. An entity
    whose kind has no other name is kept too. Spans are those in the new text.
    """
    pieces: list[str] = []
    moved: list[Entity] = []
    replaced: list[bool] = []
    copied = length = 0  # characters of the old text that are copied, and of the new text
    for entity in entities:
        name = text[entity.start : entity.end]
        others = [other for other in names.get(entity.kind, ()) if other != name]
        changes = uniform(generator) < rate and bool(others) and not (replaced and replaced[-1])
        if changes:
            name = others[random_integer(0, len(others) - 1, generator)]
        before = text[copied : entity.start]
        pieces += [before, name]
        length += len(before)
        moved.append(Entity(length, length + len(name), entity.kind))
        length += len(name)
        copied = entity.end
        replaced.append(changes)
    return ReplacedText("".join(pieces) + text[copied:], moved, replaced)
