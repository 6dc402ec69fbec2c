"""Extractive question answering: the span of a passage that answers a question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.input_validation.field_validation import check_fields
from deltatune.data import LabelKind
from deltatune.models.architecture import Answers
from deltatune.tasks.heads import HeadConfig, token_head
from deltatune.tasks.metrics.corpus_score import CorpusScore
from deltatune.tasks.metrics.qa_scores import SPAN_METRICS, span_scores
from deltatune.tasks.row_columns import column, raise_listed, text_column
from deltatune.tasks.task import Encoded, Row, Task, TokenRow
from deltatune.tasks.tokenization import check_length, need_offsets


@dataclass(frozen=True)
class ExtractiveQA(Task):
    """Start and end of an answer in a passage (Devlin et al. 2019, section 4.2, https://arxiv.org/abs/1810.04805).

    Long passages are split into overlapping windows; the answer is the best span of all windows.
    """

    name: ClassVar[str] = "span"
    answers: ClassVar[Answers] = "token"
    metrics: ClassVar[tuple[str, ...]] = SPAN_METRICS
    label_kind: ClassVar[LabelKind] = "span"
    inference_fields: ClassVar[tuple[str, ...]] = ("longest", "threshold", "metric")

    text: tuple[str, ...] = ("question", "context")
    """The column of questions and the column of passages."""
    label: str = "answers"
    """The column of answers: a list of `{"text", "start"}`, empty where the passage has none."""
    max_length: int = 384
    """Longest window in tokens, the question and special ones included."""
    stride: int = 128
    """Overlap of neighbouring windows in tokens."""
    longest: int = 30
    """Longest answer in tokens."""
    abstains: bool = False
    """Whether questions may have no answer."""
    threshold: float = 0.0
    """Margin in logits by which "no answer" must exceed the best span."""
    metric: str = "f1"
    """Primary metric: f1 of the words, or em, the exact match."""

    def __post_init__(self) -> None:
        check_fields(self)
        problems = self.metric_problems("spans")
        if len(self.text) != 2:
            problems.append(f"text must name the question's column and the passage's, not {len(self.text)}")
        if not 0 <= self.stride < self.max_length:
            problems.append(f"stride={self.stride} must be less than max_length={self.max_length}")
        if self.longest < 1:
            problems.append(f"longest must be at least 1, not {self.longest}")
        raise_all(problems)

    # --- text to windows ---

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
        """Tokenise questions and passages; a passage that is longer than a window becomes several pieces.

        The label of a piece is the first and the last token of the first of the row's answers that it holds; without
        an answer, its first token twice.
        Raises DeltatuneError for missing columns, texts without words, answers that are not in the passage, and
        questions that leave no room for it.
        """
        check_length(self.max_length, positions, positions_taken)
        need_offsets(tokenizer, "extractive question answering")
        questions, passages = (text_column(rows, name) for name in self.text)
        targets = self._targets(rows, passages) if labelled else None
        windows = make_windows(list(zip(questions, passages, strict=True)), tokenizer, self.max_length, self.stride)
        pieces: list[TokenRow] = []
        for window in windows:
            if targets is not None:
                window.tokens["label"] = window.label(targets[window.owner][0])
            pieces.append(window.tokens)
        truncated = len({window.owner for window in windows if not window.first})
        facts: list[dict[str, Any]] = [{"passage": passage, "windows": []} for passage in passages]
        for window in windows:
            facts[window.owner]["windows"].append(window)
        references = [texts for _, texts in targets] if targets is not None else None
        return Encoded(pieces, truncated, [window.owner for window in windows], facts, references)

    def _targets(self, rows: Sequence[Row], passages: list[str]) -> list[tuple[list[tuple[int, int]], list[str]]]:
        """The characters of each row's answers, and the texts of all of them."""
        answers = column(rows, self.label)
        targets = [locate_answers(answer, passage) for answer, passage in zip(answers, passages, strict=True)]
        missing = [i for i, (places, texts) in enumerate(targets) if texts and not places]
        raise_listed(
            [f"row {i}: the answer {targets[i][1][0]!r} is not in the passage where expected" for i in missing]
        )
        unanswerable = [i for i, (_, texts) in enumerate(targets) if not texts]
        if unanswerable and not self.abstains:
            raise DeltatuneError(
                f"{len(unanswerable)} rows have no answer, first row {unanswerable[0]}; "
                "ExtractiveQA(abstains=True) learns to predict that"
            )
        return targets

    # --- logits to a loss, answers and scores ---

    def head_config(self, config: PretrainedConfig, **over: Any) -> HeadConfig:
        """A head with two logits per token, as a start and as an end."""
        return token_head(config, 2, **{"dropout": 0.0, **over})

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of start and end, summed over windows: logits (B, T, 2), labels (B, 2) -> scalar."""
        start, end = logits.float().unbind(-1)  # (B, T) each
        start_loss = F.cross_entropy(start, labels[:, 0], reduction="sum")
        return (start_loss + F.cross_entropy(end, labels[:, 1], reduction="sum")) / 2

    def collect(self, pieces: Sequence[NDArray[Any]], encoded: Encoded) -> list[dict[str, Any]]:
        """The best span of each row: its text, its start and end in characters, and its score in logits."""
        assert encoded.facts is not None
        row_logits: list[list[NDArray[Any]]] = [[] for _ in encoded.facts]
        for owner, logits in zip(encoded.owners or (), pieces, strict=True):
            row_logits[owner].append(logits)
        rows = zip(row_logits, encoded.facts, strict=True)
        return [self._best(logits, fact["windows"], fact["passage"]) for logits, fact in rows]

    def _best(self, logits: list[NDArray[Any]], windows: list[Window], passage: str) -> dict[str, Any]:
        span = max(best_span(each, window, self.longest) for each, window in zip(logits, windows, strict=True))
        no_answer = min(float(each[0].sum()) for each in logits)
        if self.abstains and no_answer - span.score > self.threshold:
            return {"text": "", "start": -1, "end": -1, "score": no_answer - span.score}
        return {"text": passage[span.start : span.end], "start": span.start, "end": span.end, "score": span.score}

    def decode(self, answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """`{"answer", "start", "end", "score"}` per row; an empty answer means that there is none."""
        names = ("start", "end", "score")
        return [{"answer": answer["text"], **{name: answer[name] for name in names}} for answer in answers]

    def corpus_scores(
        self, answers: list[dict[str, Any]], references: Any, names: Sequence[str] | None = None
    ) -> Mapping[str, CorpusScore]:
        """Every metric, for answers and the texts of each row's references."""
        return span_scores([answer["text"] for answer in answers], references)

    def describe(self) -> str:
        """One line."""
        none = ", or none" if self.abstains else ""
        answer = f"a part of the {self.text[1]} that answers the {self.text[0]}{none}"
        return f"{answer}, windows of {self.max_length} tokens, scored by {self.metric}"


# --- windows ---


@dataclass(frozen=True)
class Window:
    """A question and one window of its passage, as tokens."""

    owner: int
    """Number of the row."""
    first: bool
    """Whether it is the row's first window."""
    tokens: TokenRow
    offsets: list[tuple[int, int] | None]
    """Characters of the passage that each token covers; None for the question's, special ones and lone spaces."""

    def label(self, answers: Sequence[tuple[int, int]]) -> list[int]:
        """First and last token of the first answer, given in characters, that is whole in the window; else [0, 0]."""
        for start, end in answers:
            inside = [i for i, span in enumerate(self.offsets) if span and span[0] < end and span[1] > start]
            whole = inside and self.offsets[inside[0]][0] <= start and self.offsets[inside[-1]][1] >= end  # type: ignore[index]
            if whole:
                return [inside[0], inside[-1]]
        return [0, 0]


class ScoredSpan(NamedTuple):
    """A span of a passage in characters; a larger score is better."""

    score: float
    start: int
    end: int


def make_windows(
    pairs: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerBase, max_length: int, stride: int
) -> list[Window]:
    """All windows of all rows (question, passage), in order.

    Raises DeltatuneError for passages without tokens and questions that leave less than the stride and one token.
    """
    if not pairs:
        return []
    questions, passages = (list(side) for side in zip(*pairs, strict=True))
    lengths = [len(ids) for ids in tokenizer(questions, add_special_tokens=False, verbose=False)["input_ids"]]
    longest_question = max_length - stride - tokenizer.num_special_tokens_to_add(pair=True) - 1
    raise_listed([
        f"row {i}: a question of {length} tokens leaves no room for the passage in windows of {max_length}"
        for i, length in enumerate(lengths)
        if length > longest_question
    ])  # fmt: skip
    encoding = tokenizer(
        questions, passages, truncation="only_second", max_length=max_length, stride=stride, verbose=False,
        return_overflowing_tokens=True, return_offsets_mapping=True, return_attention_mask=True,
    )  # fmt: skip
    owners = encoding["overflow_to_sample_mapping"]
    names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in encoding]
    windows = []
    for i, owner in enumerate(owners):
        offsets = [
            strip_offsets(passages[owner], *span) if side == 1 else None
            for span, side in zip(encoding["offset_mapping"][i], encoding.sequence_ids(i), strict=True)
        ]
        tokens: TokenRow = {name: encoding[name][i] for name in names}
        windows.append(Window(owner, i == 0 or owners[i - 1] != owner, tokens, offsets))
    empty = {window.owner for window in windows} - {window.owner for window in windows if any(window.offsets)}
    if empty:
        raise DeltatuneError(f"row {min(empty)}: the passage has no tokens")
    return windows


def strip_offsets(passage: str, start: int, end: int) -> tuple[int, int] | None:
    """The characters of a token without spaces around them; None where nothing is left."""
    text = passage[start:end]
    start += len(text) - len(text.lstrip())
    return (start, start + len(text.strip())) if text.strip() else None


def best_span(logits: NDArray[Any], window: Window, longest: int) -> ScoredSpan:
    """The best span of at most `longest` tokens: logits (T, 2) of starts and ends."""
    if not np.isfinite(logits).all():
        raise DeltatuneError("a window has logits that are not finite; was the learning rate too high?")
    passage_tokens = [i for i, span in enumerate(window.offsets) if span]
    if not passage_tokens:
        return ScoredSpan(-np.inf, 0, 0)
    first, last = passage_tokens[0], passage_tokens[-1] + 1
    real = np.array([span is not None for span in window.offsets[first:last]])
    start = np.where(real, logits[first:last, 0], -np.inf)[:, None]  # (t, 1)
    end = np.where(real, logits[first:last, 1], -np.inf)[None]
    scores = start + end  # (t, t): from row to column
    allowed = np.triu(np.ones_like(scores, bool)) & ~np.triu(np.ones_like(scores, bool), longest)
    i, j = np.unravel_index(np.where(allowed, scores, -np.inf).argmax(), scores.shape)
    start_offsets, end_offsets = window.offsets[first + int(i)], window.offsets[first + int(j)]
    assert start_offsets is not None
    assert end_offsets is not None
    return ScoredSpan(float(scores[i, j]), start_offsets[0], end_offsets[1])


# --- answers in a passage ---


def locate_answers(answers: Any, passage: str) -> tuple[list[tuple[int, int]], list[str]]:
    """The characters of the answers that are in the passage, and the texts of all answers.

    Takes a list of `{"text", "start"}`, SQuAD's `{"text": [...], "answer_start": [...]}`, a list of texts or one text.
    """
    if isinstance(answers, dict):
        starts = answers.get("answer_start") or [-1] * len(answers.get("text", ()))
        answers = [{"text": text, "start": start} for text, start in zip(answers.get("text", ()), starts, strict=True)]
    if isinstance(answers, str):
        answers = [answers] if answers else []
    given = [answer if isinstance(answer, dict) else {"text": answer} for answer in answers or ()]
    texts = [str(answer["text"]) for answer in given if answer["text"]]
    places = [
        _locate(str(answer["text"]), answer.get("start", answer.get("answer_start")), passage) for answer in given
    ]
    return [place for place in places if place], texts


def _locate(text: str, start: int | None, passage: str) -> tuple[int, int] | None:
    """The characters of an answer: at its start, or at its first occurrence if no start is given (None or -1)."""
    if start is None or start < 0:
        start = passage.find(text)
    matches = bool(text.strip()) and start >= 0 and passage.startswith(text, start)
    start += len(text) - len(text.lstrip())  # no token holds spaces alone
    return (start, start + len(text.strip())) if matches else None
