"""Language modelling on raw text: the likelihood of every token given those before it in its document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.input_validation.field_validation import check_fields
from deltatune.data import LabelKind
from deltatune.models.architecture import Answers, Family
from deltatune.tasks.metrics.corpus_score import CorpusScore
from deltatune.tasks.metrics.likelihood_scores import LIKELIHOOD_METRICS, likelihood_scores, perplexity
from deltatune.tasks.row_columns import text_column
from deltatune.tasks.task import IGNORED, Encoded, LanguageModelTask, Row, TokenRow
from deltatune.tasks.tokenization import check_length

METRICS = tuple(LIKELIHOOD_METRICS)


@dataclass(frozen=True)
class LanguageModel(LanguageModelTask):
    """-log p of each token of a document, its end included. Long documents are cut into blocks."""

    name: ClassVar[str] = "lm"
    answers: ClassVar[Answers] = "likelihood"
    metrics: ClassVar[tuple[str, ...]] = METRICS
    label_kind: ClassVar[LabelKind] = "raw"
    inference_fields: ClassVar[tuple[str, ...]] = ("metric",)
    families: ClassVar[tuple[Family, ...]] = ("decoder",)
    """Encoders and encoder-decoders see the tokens that they would have to predict."""

    text: tuple[str, ...] = ("text",)
    """The column of documents."""
    max_length: int = 256
    """Length of a block in tokens."""
    metric: str = "perplexity"
    """Primary metric; bits_per_char compares models with different tokenizers."""

    def __post_init__(self) -> None:
        check_fields(self)
        problems = self.metric_problems("language modelling") + self.text_problems("documents")
        if self.max_length < 2:
            problems.append(f"max_length must be at least 2, not {self.max_length}")
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
        """Tokenise documents and cut them into blocks; a block starts with the last token of the block before it.

        Raises DeltatuneError for a missing column, documents without tokens, and a max_length that the model
        has no positions for.
        """
        check_length(self.max_length, positions, positions_taken)
        texts = text_column(rows, self.text[0])
        pieces: list[TokenRow] = []
        owners: list[int] = []
        for i, ids in enumerate(documents(texts, tokenizer)):
            if len(ids) < 2:
                raise DeltatuneError(f"row {i} has no tokens: {texts[i]!r}")
            for start in range(0, len(ids) - 1, self.max_length - 1):
                block = ids[start : start + self.max_length]
                pieces.append({"input_ids": block, "attention_mask": [1] * len(block), "labels": [IGNORED, *block[1:]]})
                owners.append(i)
        facts = [{"chars": len(text), "bytes": len(text.encode())} for text in texts]
        return Encoded(pieces, 0, owners, facts, facts)

    def collect(self, pieces: Sequence[NDArray[Any]], encoded: Encoded) -> list[dict[str, Any]]:
        """`{"nll", "tokens", "chars", "bytes"}` of each document."""
        answers = [{"nll": 0.0, "tokens": 0, **facts} for facts in encoded.facts or ()]
        for owner, (nll, tokens, *_) in zip(encoded.owners or (), pieces, strict=True):
            answers[owner]["nll"] += float(nll)
            answers[owner]["tokens"] += int(tokens)
        return answers

    def decode(self, answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """`{"perplexity", "loss", "tokens"}` per document."""
        losses = [answer["nll"] / max(1, answer["tokens"]) for answer in answers]
        return [
            {"perplexity": perplexity(loss), "loss": loss, "tokens": answer["tokens"]}
            for loss, answer in zip(losses, answers, strict=True)
        ]

    def corpus_scores(
        self, answers: list[dict[str, Any]], references: Any = None, names: Sequence[str] | None = None
    ) -> Mapping[str, CorpusScore]:
        """Every metric; references are not needed."""
        return likelihood_scores(answers, METRICS)

    def describe(self) -> str:
        """One line."""
        return f"every next token of the {self.text[0]}, blocks of {self.max_length} tokens, scored by {self.metric}"


def documents(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of each text between the tokenizer's start and end tokens, where it has them.

    Without a start token the first token is not predicted: nothing comes before it.
    """
    if not texts:
        return []
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    rows = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    prefix, suffix = [] if start is None else [start], [] if end is None else [end]
    return [[*prefix, *ids, *suffix] for ids in rows]
