"""Replaced entities: which names in a text are the true ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from deltatune.core.delta import generator_for
from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.validation import check_fields
from deltatune.data import LabelKind
from deltatune.models.architecture import Answers
from deltatune.tasks.heads import HeadConfig
from deltatune.tasks.metrics.corpus_score import AdditiveScore, CorpusScore, ratio, ratio_score
from deltatune.tasks.pretraining.entity_spans import Entity, entities_of, names_by_kind, replace_entities
from deltatune.tasks.pretraining.masking import units_at
from deltatune.tasks.pretraining.mlm import tokens_of
from deltatune.tasks.task import IGNORED, Encoded, Row, Task, TokenRow, column, text_column, token_loss
from deltatune.tasks.tokenization import check_length, need_offsets

METRICS = ("f1", "accuracy", "precision", "recall")


@dataclass(frozen=True)
class ReplacedEntities(Task):
    """-log p(replaced | text, entity) for each entity     Xiong et al. 2020 (WKLM), https://arxiv.org/abs/1912.09637

    About a third of the entities are replaced by others of their kind, never two in a row, in `copies` versions of each
    text. It is read at an entity's first token, by a head on every token; WKLM reads the two tokens around an entity.
    """

    name: ClassVar[str] = "replaced"
    answers: ClassVar[Answers] = "token"

    text: tuple[str, ...] = ("text",)
    """The column of texts."""
    entities: str = "entities"
    """The column of places, [[start, end, kind], ...] in characters; `with_entities` makes one."""
    max_length: int = 256
    """Longest input in tokens; entities beyond it are left out."""
    metric: str = "f1"
    """Primary metric, of the replaced ones."""
    rate: float = 0.5
    """With what probability an entity is replaced that may be."""
    copies: int = 10
    """Versions of each text that are made."""
    seed: int = 0
    """Of the replacements."""

    def __post_init__(self) -> None:
        check_fields(self)
        problems = self.metric_problems("replaced entities", METRICS)
        if len(self.text) != 1:
            problems.append(f"text must name the one column of texts, not {len(self.text)}")
        if not 0 < self.rate <= 1 or self.copies < 1:
            problems.append(f"rate={self.rate} must be more than 0 and at most 1, and copies={self.copies} 1 or more")
        raise_all(problems)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Of finding the replaced ones."""
        return METRICS

    @property
    def label_kind(self) -> LabelKind:
        """Texts without labels."""
        return "raw"

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
        """Replace entities and tokenise; the names of a kind are those in these rows.

        With `labelled=False` texts stay as they are: the model is asked which of their own names are wrong. Raises
        DeltatuneError for missing columns, entities outside their text or that overlap, and rows in which no entity has
        another name of its kind.
        """
        check_length(self.max_length, positions, positions_taken)
        need_offsets(tokenizer, "replacing entities")
        texts = text_column(rows, self.text[0])
        spans = column(rows, self.entities)
        found = [
            entities_of(text, own or (), f"row {i}") for i, (text, own) in enumerate(zip(texts, spans, strict=True))
        ]
        names = names_by_kind(zip(texts, found, strict=True))
        if labelled and rows and all(len(own) < 2 for own in names.values()):
            raise DeltatuneError(
                f"no entity can be replaced: no kind has two names in the column {self.entities!r} of these rows"
            )
        pieces: list[TokenRow] = []
        places: list[list[int | None]] = []
        truth: list[list[bool]] = []
        cut = 0
        for copy in range(self.copies if labelled else 1):
            for i, (text, own) in enumerate(zip(texts, found, strict=True)):
                entities, replaced = own, [False] * len(own)
                if labelled:
                    generator = generator_for(self.seed, f"draw.{copy}.{i}")
                    text, entities, replaced = replace_entities(text, own, names, generator, self.rate)
                tokens, at = self._row(text, entities, tokenizer)
                cut += None in at
                tokens["labels"] = [IGNORED] * len(tokens["input_ids"])
                for place, changed in zip(at, replaced, strict=True):
                    if place is not None:
                        tokens["labels"][place] = int(changed)
                pieces.append(tokens)
                places.append(at)
                truth.append(replaced)
        return Encoded(pieces, cut, range(len(pieces)), places, truth)

    def _row(
        self, text: str, entities: Sequence[Entity], tokenizer: PreTrainedTokenizerBase
    ) -> tuple[TokenRow, list[int | None]]:
        """Tokens of a text, and the first one of each entity (None: it was cut off)."""
        found = tokenizer(
            [text], truncation=True, max_length=self.max_length, return_offsets_mapping=True, verbose=False,
            return_special_tokens_mask=True, return_attention_mask=True,
        )  # fmt: skip
        special = [bool(flag) for flag in found["special_tokens_mask"][0]]
        firsts = [units_at([entity], found["offset_mapping"][0], special) for entity in entities]
        return tokens_of(found, 0), [units[0][0] if units else None for units in firsts]

    def head_config(self, config: PretrainedConfig, **over: Any) -> HeadConfig:
        """The head for this task: every token is judged."""
        width = config.get_text_config().hidden_size
        return HeadConfig(**{**over, "pooling": "none", "outputs": 2, "width": width})

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy summed over the entities: logits (B, T, 2), labels (B, T) -> scalar."""
        return token_loss(logits, labels)

    def items(self, labels: Tensor) -> int:
        """Entities of the batch."""
        return int((labels != IGNORED).sum())

    def collect(self, pieces: Sequence[NDArray[Any]], encoded: Encoded) -> list[list[float | None]]:
        """Of each entity of each text how probable it is that it was replaced; None where it was cut off."""
        found: list[list[float | None]] = []
        for logits, places in zip(pieces, encoded.facts or (), strict=True):
            if not np.isfinite(logits).all():
                raise DeltatuneError("a row has logits that are not finite; was the learning rate too high?")
            odds = logits[:, 1] - logits[:, 0]
            found.append([None if at is None else float(1 / (1 + np.exp(-odds[at]))) for at in places])
        return found

    def decode(self, answers: list[list[float | None]]) -> list[dict[str, Any]]:
        """`{"replaced": [probabilities]}` a text."""
        return [{"replaced": own} for own in answers]

    def corpus_scores(
        self, answers: list[list[float | None]], references: Any, names: Sequence[str] | None = None
    ) -> Mapping[str, CorpusScore]:
        """Every metric; entities that were cut off are not counted."""
        sums = np.zeros((len(answers), 4))
        for row, (own, truth) in enumerate(zip(answers, references, strict=True)):
            for odds, replaced in zip(own, truth, strict=True):
                if odds is not None:
                    sums[row, 2 * (odds > 0.5) + replaced] += 1
        missed, false, hit = sums[:, 1], sums[:, 2], sums[:, 3]
        f1 = AdditiveScore(sums, lambda s: ratio(2 * s[..., 3], 2 * s[..., 3] + s[..., 1] + s[..., 2]))
        return {
            "f1": f1,
            "accuracy": ratio_score(sums[:, 0] + hit, sums.sum(1)),
            "precision": ratio_score(hit, hit + false),
            "recall": ratio_score(hit, hit + missed),
        }

    def describe(self) -> str:
        """One line."""
        what = f"which names in the {self.text[0]} were replaced"
        return f"{what}, at most {self.max_length} tokens, judged by {self.metric}"
