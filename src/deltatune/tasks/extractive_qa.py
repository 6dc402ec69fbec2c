"""A passage in windows of tokens that overlap, and the best span in one of them."""

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
from deltatune.core.validation import check_fields
from deltatune.data import Kind
from deltatune.models.architecture import Answers
from deltatune.tasks.heads import HeadConfig
from deltatune.tasks.metrics.corpus_score import CorpusScore
from deltatune.tasks.metrics.qa_scores import span_scores
from deltatune.tasks.task import Encoded, Row, Task, TokenRow, column, raise_listed, text_column
from deltatune.tasks.tokenization import check_length, need_offsets


@dataclass(frozen=True)
class Window:
    """One window of a passage behind its question."""

    owner: int
    """Number of the row."""
    first: bool
    """Whether it is the row's first."""
    tokens: TokenRow
    offsets: list[tuple[int, int] | None]
    """Characters of the passage that each token covers; None for the question's, special ones and lone spaces."""

    def place(self, answer: tuple[int, int] | None) -> list[int]:
        """Tokens at which an answer (characters) starts and ends; [0, 0] if it is not whole in this window."""
        if answer is None:
            return [0, 0]
        start, end = answer
        inside = [i for i, where in enumerate(self.offsets) if where and where[0] < end and where[1] > start]
        whole = inside and self.offsets[inside[0]][0] <= start and self.offsets[inside[-1]][1] >= end  # type: ignore[index]
        return [inside[0], inside[-1]] if whole else [0, 0]


class Found(NamedTuple):
    """A span of a passage in characters; the larger score is the better one."""

    score: float
    start: int
    end: int


def windows(
    pairs: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerBase, max_length: int, stride: int
) -> list[Window]:
    """All windows of all rows (question, passage), in order.

    Raises DeltatuneError for passages without tokens and questions that leave less than the stride and one token.
    """
    if not pairs:
        return []
    questions, passages = (list(side) for side in zip(*pairs, strict=True))
    lengths = [len(ids) for ids in tokenizer(questions, add_special_tokens=False, verbose=False)["input_ids"]]
    most = max_length - stride - tokenizer.num_special_tokens_to_add(pair=True) - 1
    raise_listed([
        f"row {i}: a question of {length} tokens leaves no room for the passage in windows of {max_length}"
        for i, length in enumerate(lengths)
        if length > most
    ])  # fmt: skip
    found = tokenizer(
        questions, passages, truncation="only_second", max_length=max_length, stride=stride, verbose=False,
        return_overflowing_tokens=True, return_offsets_mapping=True, return_attention_mask=True,
    )  # fmt: skip
    owners = found["overflow_to_sample_mapping"]
    names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in found]
    result = []
    for i, owner in enumerate(owners):
        sides = found.sequence_ids(i)
        offsets = [
            trimmed(passages[owner], *where) if side == 1 else None
            for where, side in zip(found["offset_mapping"][i], sides, strict=True)
        ]
        tokens: TokenRow = {name: found[name][i] for name in names}
        result.append(Window(owner, i == 0 or owners[i - 1] != owner, tokens, offsets))
    empty = {window.owner for window in result} - {w.owner for w in result if any(w.offsets)}
    if empty:
        raise DeltatuneError(f"row {min(empty)}: the passage has no tokens")
    return result


def trimmed(passage: str, start: int, end: int) -> tuple[int, int] | None:
    """The characters of a token without the space that it may bring; None where nothing is left."""
    text = passage[start:end]
    start += len(text) - len(text.lstrip())
    return (start, start + len(text.strip())) if text.strip() else None


def best_span(logits: NDArray[Any], window: Window, longest: int) -> Found:
    """The best span of at most `longest` tokens: logits (T, 2) of starts and ends."""
    if not np.isfinite(logits).all():
        raise DeltatuneError("a window has logits that are not finite; was the rate too high?")
    there = [i for i, where in enumerate(window.offsets) if where]
    if not there:
        return Found(-np.inf, 0, 0)
    first, last = there[0], there[-1] + 1
    real = np.array([where is not None for where in window.offsets[first:last]])
    start = np.where(real, logits[first:last, 0], -np.inf)[:, None]  # (t, 1)
    end = np.where(real, logits[first:last, 1], -np.inf)[None]
    scores = start + end  # (t, t): from row to column
    allowed = np.triu(np.ones_like(scores, bool)) & ~np.triu(np.ones_like(scores, bool), longest)
    at, to = np.unravel_index(np.where(allowed, scores, -np.inf).argmax(), scores.shape)
    begins, ends = window.offsets[first + int(at)], window.offsets[first + int(to)]
    assert begins is not None
    assert ends is not None
    return Found(float(scores[at, to]), begins[0], ends[1])


METRICS = ("f1", "em")


@dataclass(frozen=True)
class Span(Task):
    """Start and end of an answer in a passage (Devlin et al. 2019, section 4.2, https://arxiv.org/abs/1810.04805).

    Long passages are read in windows that overlap; the best span of all of them is the answer.
    """

    name: ClassVar[str] = "span"
    answers: ClassVar[Answers] = "token"

    inference_fields: ClassVar[tuple[str, ...]] = ("longest", "threshold", "metric")
    """Fields that may be others when a trained adapter is used."""

    text: tuple[str, ...] = ("question", "context")
    """The question's column and the passage's."""
    label: str = "answers"
    """The column of answers: a list of `{"text", "start"}`, empty where the passage has none."""
    max_length: int = 384
    """Longest window in tokens, the question and special ones included."""
    stride: int = 128
    """Tokens that neighbouring windows share."""
    longest: int = 30
    """Tokens of the longest answer that is considered."""
    abstains: bool = False
    """Whether "no answer" is among the answers."""
    threshold: float = 0.0
    """How much better than the best span "no answer" must be, in logits."""
    metric: str = "f1"
    """Primary metric: f1 of the words, or em, the exact match."""

    def __post_init__(self) -> None:
        check_fields(self)
        problems = self.metric_problems("spans", METRICS)
        if len(self.text) != 2:
            problems.append(f"text must name the question's column and the passage's, not {len(self.text)}")
        if not 0 <= self.stride < self.max_length:
            problems.append(f"stride={self.stride} must be less than max_length={self.max_length}")
        if self.longest < 1:
            problems.append(f"longest must be at least 1, not {self.longest}")
        raise_all(problems)

    @property
    def metrics(self) -> tuple[str, ...]:
        """F1 and exact match, as SQuAD's script has them."""
        return METRICS

    @property
    def data_kind(self) -> Kind:
        """A span of a passage per row."""
        return "span"

    # --- text to windows ---

    def encode(
        self,
        rows: Sequence[Row],
        tokenizer: PreTrainedTokenizerBase,
        *,
        positions: int | None = None,
        room: int = 0,
        labelled: bool = True,
        joined: bool = True,
    ) -> Encoded:
        """Tokenise questions and passages; a passage that is longer than a window becomes several pieces.

        The label of a piece is where its answer starts and ends; of one without, its first token twice.
        Raises DeltatuneError for missing columns, texts without words, answers that are not in the passage, and
        questions that leave no room for it.
        """
        check_length(self.max_length, positions, room)
        need_offsets(tokenizer, "finding spans")
        questions, passages = (text_column(rows, name) for name in self.text)
        wanted = self._wanted(rows, passages) if labelled else None
        found = windows(list(zip(questions, passages, strict=True)), tokenizer, self.max_length, self.stride)
        pieces: list[TokenRow] = []
        for window in found:
            if wanted is not None:
                window.tokens["label"] = window.place(wanted[window.owner][0])
            pieces.append(window.tokens)
        several = len({w.owner for w in found if not w.first})
        facts = _grouped(found, passages)
        truth = [texts for _, texts in wanted] if wanted is not None else None
        return Encoded(pieces, several, [w.owner for w in found], facts, truth)

    def _wanted(self, rows: Sequence[Row], passages: list[str]) -> list[tuple[tuple[int, int] | None, list[str]]]:
        """Where each row's answer stands, and all its texts."""
        wanted = [answer_of(own, passage) for own, passage in zip(column(rows, self.label), passages, strict=True)]
        lost = [i for i, (place, texts) in enumerate(wanted) if texts and place is None]
        raise_listed([f"row {i}: the answer {wanted[i][1][0]!r} is not in the passage where it says" for i in lost])
        without = [i for i, (_, texts) in enumerate(wanted) if not texts]
        if without and not self.abstains:
            raise DeltatuneError(
                f"{len(without)} rows have no answer, first row {without[0]}; Span(abstains=True) learns to say so"
            )
        return wanted

    # --- logits to a loss, answers and scores ---

    def head_config(self, config: PretrainedConfig, **over: Any) -> HeadConfig:
        """The head for this task: two logits a token, as a start and as an end."""
        width = config.get_text_config().hidden_size
        return HeadConfig(**{"dropout": 0.0, **over, "pooling": "none", "outputs": 2, "width": width})

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean of the start's and the end's cross-entropy, summed over windows: (B, T, 2), labels (B, 2) -> scalar."""
        start, end = logits.float().unbind(-1)  # (B, T) each
        starts = F.cross_entropy(start, labels[:, 0], reduction="sum")
        return (starts + F.cross_entropy(end, labels[:, 1], reduction="sum")) / 2

    def items(self, labels: Tensor) -> int:
        """Windows of the batch."""
        return len(labels)

    def collect(self, pieces: Sequence[NDArray[Any]], encoded: Encoded) -> list[dict[str, Any]]:
        """The best span of each row: its text, where it starts and ends in the passage, and its score in logits."""
        assert encoded.facts is not None
        mine: list[list[NDArray[Any]]] = [[] for _ in encoded.facts]
        for owner, logits in zip(encoded.owners or (), pieces, strict=True):
            mine[owner].append(logits)
        both = zip(mine, encoded.facts, strict=True)
        return [self._best(own, fact["windows"], fact["passage"]) for own, fact in both]

    def _best(self, logits: list[NDArray[Any]], own: list[Window], passage: str) -> dict[str, Any]:
        found = max((best_span(one, window, self.longest) for one, window in zip(logits, own, strict=True)))
        none = min(float(one[0].sum()) for one in logits)
        if self.abstains and none - found.score > self.threshold:
            return {"text": "", "start": -1, "end": -1, "score": none - found.score}
        return {"text": passage[found.start : found.end], "start": found.start, "end": found.end, "score": found.score}

    def decode(self, answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """`{"answer", "start", "end", "score"}` a row; an empty answer says that there is none."""
        return [{"answer": one["text"], **{name: one[name] for name in ("start", "end", "score")}} for one in answers]

    def corpus_scores(
        self, answers: list[dict[str, Any]], references: Any, names: Sequence[str] | None = None
    ) -> Mapping[str, CorpusScore]:
        """Every metric, for answers and the texts of each row's references."""
        return span_scores([one["text"] for one in answers], references)

    def describe(self) -> str:
        """One line."""
        none = ", or none" if self.abstains else ""
        what = f"a part of the {self.text[1]} that answers the {self.text[0]}{none}"
        return f"{what}, windows of {self.max_length} tokens, judged by {self.metric}"


def answer_of(answers: Any, passage: str) -> tuple[tuple[int, int] | None, list[str]]:
    """Where the first answer stands in the passage (characters), and the texts of all of them.

    Takes a list of `{"text", "start"}`, SQuAD's `{"text": [...], "answer_start": [...]}`, a list of texts or one text.
    """
    if isinstance(answers, dict):
        starts = answers.get("answer_start") or [-1] * len(answers.get("text", ()))
        answers = [{"text": text, "start": start} for text, start in zip(answers.get("text", ()), starts, strict=True)]
    if isinstance(answers, str):
        answers = [answers] if answers else []
    given = [one if isinstance(one, dict) else {"text": one} for one in answers or ()]
    texts = [str(one["text"]) for one in given if one["text"]]
    places = [_found(str(one["text"]), one.get("start", one.get("answer_start")), passage) for one in given]
    return next((place for place in places if place), None), texts


def _found(text: str, start: int | None, passage: str) -> tuple[int, int] | None:
    """Where an answer stands: at its start, or where it comes first if none is given (None or -1)."""
    if start is None or start < 0:
        start = passage.find(text)
    there = bool(text.strip()) and start >= 0 and passage.startswith(text, start)
    start += len(text) - len(text.lstrip())  # no token holds spaces alone
    return (start, start + len(text.strip())) if there else None


def _grouped(found: Sequence[Window], passages: Sequence[str]) -> list[dict[str, Any]]:
    facts: list[dict[str, Any]] = [{"passage": passage, "windows": []} for passage in passages]
    for window in found:
        facts[window.owner]["windows"].append(window)
    return facts
