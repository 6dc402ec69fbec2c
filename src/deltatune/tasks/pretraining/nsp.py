"""Next-sentence prediction: masked language modelling of pairs, and whether the second passage follows the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from deltatune.core.delta import generator_for
from deltatune.core.errors import DeltatuneError
from deltatune.models.architecture import Loads
from deltatune.tasks.collator import DynamicCollator
from deltatune.tasks.heads import HeadConfig
from deltatune.tasks.metrics.corpus_score import CorpusScore, mean_score
from deltatune.tasks.pretraining.masking import Choose, check_rate, word_units_by_marks
from deltatune.tasks.pretraining.mlm import mask_facts, remasked, unmasked_row
from deltatune.tasks.pretraining.objective import Objective
from deltatune.tasks.pretraining.sentence_pairs import (
    SentencePair,
    pair_documents,
    pair_frame,
    split_sentences,
    tokenise_sentences,
)
from deltatune.tasks.row_columns import column
from deltatune.tasks.task import Encoded, Row, TokenRow
from deltatune.tasks.tokenization import check_length


@dataclass(frozen=True)
class NextSentence(Objective):
    """-log p(b follows a) - Σ log p(x_i | x̃)     Devlin et al. 2018, https://arxiv.org/abs/1810.04805

    Documents are split into pairs of passages once, by `seed`; masks are drawn again in every epoch. Each of the two
    losses is a mean, and both have the same weight.
    With three classes it is ERNIE 2.0's sentence distance, https://arxiv.org/abs/1907.12412: next, another document's,
    or of the same document and apart. (StructBERT's third class, https://arxiv.org/abs/1908.04577, is the sentence
    before.) BERT's head has two outputs, so this one has its own, a dense layer and a classifier at the first token: it
    is trained with any method, and saved with the adapter.
    """

    name: ClassVar[str] = "nsp"
    added_fields: ClassVar[Mapping[str, Any]] = {"classes": 2}
    extra_labels: ClassVar[tuple[str, ...]] = ("pair_labels",)
    metrics: ClassVar[tuple[str, ...]] = ("perplexity", "loss", "accuracy", "pair_accuracy", "pair_loss")
    shortest: ClassVar[int] = 5

    unit: Literal["token", "word"] = "token"
    """What is masked as a whole."""
    rate: float = 0.15
    """Share of the tokens that are chosen."""
    shares: tuple[float, ...] = (0.8, 0.1, 0.1)
    """Shares of the chosen tokens that become the mask token, become a random token, or stay."""
    choose: Choose = "count"
    """count: round(rate * tokens) of each input, as in BERT; each: every unit with probability rate."""
    short: float = 0.1
    """Share of the documents that are split into shorter pairs, of a random length."""
    copies: int = 1
    """How many times all documents are paired, each time differently; BERT's code had 10."""
    classes: Literal[2, 3] = 2
    """2: whether the second passage follows (0) or is from another document (1). 3: also whether it is of the same
    document, but apart from the first (2): at least one sentence lies between them."""

    @property
    def loads(self) -> Loads:  # type: ignore[override]
        """A model with BERT's own head for two classes; any masked language model for three."""
        return "pairs" if self.classes == 2 else "mask"

    def head_config(self, config: PretrainedConfig, **over: Any) -> HeadConfig | None:
        """For three classes a head like BERT's pooler and classifier; None for two, for which the model has one."""
        if self.classes == 2:
            return None
        width = config.get_text_config().hidden_size
        return HeadConfig(**{**over, "pooling": "cls", "dense": True, "outputs": self.classes, "width": width})

    def collator(self, tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> DynamicCollator:
        """As of every objective. Raises DeltatuneError for three classes: transformers' models have no such head."""
        if self.classes != 2:
            raise DeltatuneError(
                "NextSentence(classes=3) has a head of its own, which transformers' models lack: train it with "
                "deltatune pretrain or deltatune.training.train, or give other loops classes=2"
            )
        return super().collator(tokenizer, seed)

    def check(self) -> None:
        check_rate(self.rate, self.shares)
        if self.copies < 1 or not 0 <= self.short <= 1:
            raise DeltatuneError(f"copies={self.copies} must be 1 or more, and short={self.short} from 0 to 1")

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
        """Pair the documents' sentences and mask each pair once; each pair becomes a row of its own.

        A text has one sentence per line, and a blank line ends a document, as in the files of BERT's code. A list of
        sentences is one document. Raises DeltatuneError for fewer than two documents, and as masking does.
        """
        check_length(self.max_length, positions, positions_taken)
        facts, frame = mask_facts(tokenizer), pair_frame(tokenizer)
        documents = tokenise_sentences(split_sentences(column(rows, self.text[0])), tokenizer) if rows else []
        pairs: list[SentencePair] = []
        for copy in range(self.copies if rows else 0):
            generator = generator_for(self.seed, f"pairs.{copy}")
            pairs += pair_documents(documents, generator, self.max_length - frame.size, self.short, self.classes)
        ids = [frame.ids(pair) for pair in pairs]
        words = word_units_by_marks(ids, tokenizer) if self.unit == "word" else [None] * len(ids)
        encoded = []
        for i, (pair, units) in enumerate(zip(pairs, words, strict=True)):
            tokens = {"input_ids": ids[i], "attention_mask": [1] * len(ids[i]), "token_type_ids": frame.types(pair)}
            row = unmasked_row(tokens, frame.special(pair), units, facts)
            encoded.append(row | {"pair_label": int(pair.label)})
        return self.drawn(encoded, range(len(pairs)), len(pairs))

    def draw(self, row: TokenRow, generator: torch.Generator) -> TokenRow:
        """The pair with other tokens masked."""
        return remasked(row, generator, self.rate, self.shares, self.choose)

    def model_loss(self, logits: Tensor, labels: Tensor, outputs: Any, extra_labels: Mapping[str, Tensor]) -> Tensor:
        """Masked tokens and pairs: the mean loss of the pairs counts as much as the mean loss of the tokens."""
        pair_loss = F.cross_entropy(outputs.seq_relationship_logits.float(), extra_labels["pair_labels"])
        return self.loss(logits, labels) + pair_loss * len(labels)

    def extra_statistics(self, outputs: Any, extra_labels: Mapping[str, Tensor]) -> Tensor | None:
        """Negative log-likelihood of each pair's label in nats, and 1 where it is the likeliest label: (B, 2)."""
        logits, labels = outputs.seq_relationship_logits.float(), extra_labels["pair_labels"]  # (B, C), (B,)
        return torch.stack([F.cross_entropy(logits, labels, reduction="none"), logits.argmax(-1) == labels], 1)

    def collect(self, pieces: Sequence[NDArray[Any]], encoded: Encoded) -> list[dict[str, Any]]:
        """The numbers of the masked tokens, and `{"pair_nll", "pair_right"}` of each pair."""
        answers = super().collect(pieces, encoded)
        for answer, (*_, nll, right) in zip(answers, pieces, strict=True):
            answer |= {"pair_nll": float(nll), "pair_right": int(right)}
        return answers

    def decode(self, answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The scores of the masked tokens, and `{"pair_loss", "pair_right"}`."""
        return [
            {**tokens, "pair_loss": answer["pair_nll"], "pair_right": bool(answer["pair_right"])}
            for tokens, answer in zip(super().decode(answers), answers, strict=True)
        ]

    def corpus_scores(
        self, answers: list[dict[str, Any]], references: Any = None, names: Sequence[str] | None = None
    ) -> Mapping[str, CorpusScore]:
        """Every metric; references are not needed."""
        keys = {"pair_accuracy": "pair_right", "pair_loss": "pair_nll"}
        pair_scores = {name: mean_score([answer[key] for answer in answers]) for name, key in keys.items()}
        return {**super().corpus_scores(answers), **pair_scores}

    def target(self) -> str:
        asked = "whether a passage follows another" if self.classes == 2 else "how far a passage is from another"
        return f"{asked}, and {self.rate:.0%} of the {self.unit}s,"
