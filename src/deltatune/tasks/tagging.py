"""Token tagging: one tag for each word of a text, such as entities, parts of speech or misspelled words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.core.input_validation.field_validation import check_fields
from deltatune.data import LabelKind
from deltatune.models.architecture import Answers
from deltatune.tasks.heads import HeadConfig, token_head
from deltatune.tasks.metrics.corpus_score import CorpusScore
from deltatune.tasks.metrics.tag_scores import ENTITY_METRICS, TAG_METRICS, is_entity_scheme, tag_scores
from deltatune.tasks.row_columns import column, raise_listed
from deltatune.tasks.task import IGNORED, Encoded, Row, Task, TokenRow, token_loss
from deltatune.tasks.tokenization import check_length, check_room, need_offsets


@dataclass(frozen=True)
class Tag(Task):
    """One tag per word. One token of each word has its tag as label; the others have no loss."""

    name: ClassVar[str] = "tag"
    answers: ClassVar[Answers] = "token"
    label_kind: ClassVar[LabelKind] = "tags"
    inference_fields: ClassVar[tuple[str, ...]] = ("metric",)

    tags: tuple[str, ...] = ()
    """The tags in the order of the logits. Words beyond max_length are predicted the first one."""
    text: tuple[str, ...] = ("tokens",)
    """The column of words."""
    label: str = "tags"
    """The column of tags, as many as words."""
    max_length: int = 256
    """Longest input in tokens, special ones included."""
    metric: str = ""
    """Primary metric; by default f1 of the entities, or accuracy for tags without B- and I-."""
    piece: Literal["first", "last"] = "first"
    """Token of a word that predicts its tag; on decoders only the last token has seen the whole word."""
    too_long: Literal["truncate", "error"] = "truncate"
    """Whether longer texts are truncated (and counted) or are an error. Words that are cut off get the first tag."""

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "metric", self.metric or self.metrics[0])
        problems = self.metric_problems("these tags") + self.text_problems("words")
        if len(self.tags) < 2:
            problems.append(f"there must be two tags or more, not {len(self.tags)}")
        if len(set(self.tags)) < len(self.tags):
            problems.append(f"tags name a tag twice: {', '.join(self.tags)}")
        raise_all(problems)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Metrics of entities if the tags mark where they begin, else of single words."""
        return ENTITY_METRICS if is_entity_scheme(self.tags) else TAG_METRICS

    # --- words to tokens ---

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
        """Tokenise the words of each row, joined by spaces; character offsets give each token's word.

        Raises DeltatuneError for a missing column, rows without words, another number of tags than of words, unknown
        tags, a tokenizer without offsets, and a max_length that the model has no positions for.
        """
        check_length(self.max_length, positions, positions_taken)
        need_offsets(tokenizer, "tagging")
        words = self._words(rows)
        tags = self._tags(rows, words) if labelled else None
        encoded, word_tokens, truncated = [], [], 0
        for i, row in enumerate(words):
            tokens, indices, cut = self._row(row, tokenizer)
            truncated += cut
            if tags is not None:
                tokens["labels"] = [IGNORED] * len(tokens["input_ids"])
                for index, tag in zip(indices, tags[i], strict=True):
                    if index is not None:
                        tokens["labels"][index] = self.tags.index(tag)
            encoded.append(tokens)
            word_tokens.append(indices)
        if truncated and self.too_long == "error":
            raise DeltatuneError(
                f"{truncated} of {len(rows)} texts are longer than max_length={self.max_length} tokens; raise it or "
                "choose too_long='truncate'"
            )
        return Encoded(encoded, truncated, facts=word_tokens, row_references=tags)

    def _row(self, words: list[str], tokenizer: PreTrainedTokenizerBase) -> tuple[TokenRow, list[int | None], bool]:
        """Tokens, the index of each word's token (None: it has none), and whether words were cut off."""
        ends = list(accumulate(len(word) + 1 for word in words))
        text = " ".join(words)
        tokens = dict(tokenizer(text, return_offsets_mapping=True, return_attention_mask=True, verbose=False))
        cut = len(tokens["input_ids"]) > self.max_length
        if cut:
            check_room(self.max_length, 1, tokenizer.num_special_tokens_to_add())
            tokens = dict(
                tokenizer(
                    text, truncation=True, max_length=self.max_length, return_offsets_mapping=True, verbose=False,
                    return_attention_mask=True,
                )
            )  # fmt: skip
        indices: list[int | None] = [None] * len(words)
        word = 0
        for index, (start, end) in enumerate(tokens.pop("offset_mapping")):
            start += len(text[start:end]) - len(text[start:end].lstrip())  # a token may include the space before it
            if start == end:  # special tokens, and lone spaces
                continue
            while start >= ends[word]:
                word += 1
            if indices[word] is None or self.piece == "last":
                indices[word] = index
        return tokens, indices, cut

    def _words(self, rows: Sequence[Row]) -> list[list[str]]:
        name = self.text[0]
        values = [value.split() if isinstance(value, str) else value for value in column(rows, name)]
        raise_listed([
            f"row {i}: {name} is {value!r}, not a list of words"
            for i, value in enumerate(values)
            if not isinstance(value, (list, tuple)) or not value or not all(isinstance(word, str) for word in value)
        ])  # fmt: skip
        return [list(value) for value in values]

    def _tags(self, rows: Sequence[Row], words: list[list[str]]) -> list[list[str]]:
        given = [value.split() if isinstance(value, str) else value for value in column(rows, self.label)]
        raise_listed([
            f"row {i}: {self.label} is {value!r}, not a list of tags"
            for i, value in enumerate(given)
            if not isinstance(value, (list, tuple))
        ])  # fmt: skip
        values = [list(value) for value in given]
        problems = []
        for i, (tags, row) in enumerate(zip(values, words, strict=True)):
            if len(tags) != len(row):
                problems.append(f"row {i}: {len(row)} words but {len(tags)} tags")
            unknown = [tag for tag in tags if tag not in self.tags]
            if unknown:
                problems.append(f"row {i}: {unknown[0]!r} is not a tag{nearest(str(unknown[0]), self.tags)}")
        raise_listed(problems, f"tags of this task: {', '.join(self.tags)}")
        return values

    # --- logits to a loss, answers and scores ---

    def head_config(self, config: PretrainedConfig, **over: Any) -> HeadConfig:
        """A head that classifies every token."""
        return token_head(config, len(self.tags), **over)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy summed over the tagged words: logits (B, T, C), labels (B, T) -> scalar."""
        return token_loss(logits, labels)

    def items(self, labels: Tensor) -> int:
        """Tagged words of the batch."""
        return int((labels != IGNORED).sum())

    def collect(self, pieces: Sequence[NDArray[Any]], encoded: Encoded) -> list[list[str]]:
        """The tags of each row's words, from logits (T, C) of its tokens."""
        assert encoded.facts is not None
        answers = []
        for logits, indices in zip(pieces, encoded.facts, strict=True):
            if not np.isfinite(logits).all():
                raise DeltatuneError("a row has logits that are not finite; was the learning rate too high?")
            best = logits.argmax(-1)
            answers.append([self.tags[0] if index is None else self.tags[best[index]] for index in indices])
        return answers

    def decode(self, answers: list[list[str]]) -> list[dict[str, Any]]:
        """`{"tags": [...]}` per row, one tag for each word."""
        return [{"tags": tags} for tags in answers]

    def corpus_scores(
        self, answers: list[list[str]], references: Any, names: Sequence[str] | None = None
    ) -> Mapping[str, CorpusScore]:
        """Every metric, for tags and references as one list of tags per row."""
        return tag_scores(answers, references, is_entity_scheme(self.tags))

    def describe(self) -> str:
        """One line."""
        answer = f"one of {len(self.tags)} tags for each of the {self.text[0]}"
        return f"{answer}, at most {self.max_length} tokens a text, scored by {self.metric}"
