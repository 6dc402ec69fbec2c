"""Preferences: a language model learns which of two answers to a prompt is the better one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.data import LabelKind
from deltatune.data.columns.column_names import REJECTED
from deltatune.tasks.generation import Generate
from deltatune.tasks.metrics.corpus_score import CorpusScore, mean_score
from deltatune.tasks.metrics.preference_scores import PREFERENCE_METRICS
from deltatune.tasks.preferences.pair_collator import REJECTED_IDS, REJECTED_LABELS
from deltatune.tasks.preferences.pair_loss import LossType, pair_losses
from deltatune.tasks.prompts.prompt_encoding import Example, PromptEncoder
from deltatune.tasks.row_columns import column, raise_listed, text_column
from deltatune.tasks.task import Encoded, Row, TokenRow
from deltatune.tasks.tokenization import check_length

BASE, START = "base", "start"
"""References: the model without adapters, and the adapter that training started from."""


@dataclass(frozen=True)
class Prefer(Generate):
    """The better of two answers: -log σ(β · (log π(y⁺)/π_ref(y⁺) - log π(y⁻)/π_ref(y⁻))) by default.

    Direct preference optimisation, Rafailov et al. 2023, https://arxiv.org/abs/2305.18290. The reference π_ref is the
    same base without the adapter, or with another one: no second model is loaded. Log-probabilities are of the answers
    alone, with their ends. A trained adapter generates text; labelled rows score how it ranks the answers of each pair.
    """

    name: ClassVar[str] = "prefer"
    metrics: ClassVar[tuple[str, ...]] = PREFERENCE_METRICS
    label_kind: ClassVar[LabelKind] = "pairs"
    inference_fields: ClassVar[tuple[str, ...]] = (
        *(name for name in Generate.inference_fields if name not in ("characters", "metric_model", "metric_layer")),
        "beta", "loss_type", "label_smoothing", "reference",
    )  # fmt: skip
    added_fields: ClassVar[Mapping[str, Any]] = {}

    text: tuple[str, ...] = ("prompt",)
    """The columns of the prompt: a text, or the messages of a conversation before the answer."""
    label: str = "chosen"
    """The column of the chosen answer; the column `rejected` has the other one."""
    metric: str = "accuracy"
    """Primary metric: accuracy, the share of pairs whose chosen answer has the higher reward (a tie counts half);
    reward_margin, the mean difference of rewards; or preference_loss."""
    loss_type: LossType = "sigmoid"
    """sigmoid (DPO), ipo (https://arxiv.org/abs/2310.12036) or hinge (https://arxiv.org/abs/2305.10425)."""
    beta: float = 0.1
    """How strongly the adapter is held to the reference; a reward is β · log π/π_ref."""
    label_smoothing: float = 0.0
    """Of sigmoid: probability that a pair is labelled the wrong way round, below 0.5."""
    reference: str = BASE
    """base: the model without adapters; or the name of an adapter on the host, such as start, the adapter that training
    starts from."""

    def __post_init__(self) -> None:
        super().__post_init__()
        problems = []
        if self.beta <= 0:
            problems.append(f"beta must be above 0, not {self.beta}")
        if not 0 <= self.label_smoothing < 0.5:
            problems.append(f"label_smoothing must be at least 0 and below 0.5, not {self.label_smoothing}")
        if self.label_smoothing and self.loss_type != "sigmoid":
            problems.append(f"label_smoothing is for loss_type='sigmoid', not {self.loss_type!r}; leave it out")
        if self.sentinel:
            problems.append(f"sentinel={self.sentinel!r} is for generation; leave it out")
        if not self.reference:
            problems.append("reference must be 'base' or the name of an adapter")
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
        """Tokenise prompts and pairs of answers; both answers of a pair follow the same tokens.

        A prompt that is too long loses the end of its longest column, and a conversation its oldest turns; an answer
        loses its end. A row counts as truncated if any of the three was cut. Raises DeltatuneError for missing columns,
        answers that are empty or equal, and a max_length that the model has no positions for.
        """
        return PairEncoder(self, tokenizer, joined).encode(rows, positions, positions_taken, labelled)

    # ---- losses and scores

    def losses(self, policy: Tensor, reference: Tensor, tokens: Tensor) -> Tensor:
        """The loss of each pair (B,), from log-probabilities and numbers of tokens (B, 2) of both answers."""
        return pair_losses(policy, reference, tokens, self.loss_type, self.beta, self.label_smoothing)

    def items(self, labels: Tensor) -> int:
        """Pairs of the batch: labels (2B, T)."""
        return len(labels) // 2

    def collect(self, pieces: Sequence[NDArray[Any]], encoded: Encoded) -> list[dict[str, Any]]:
        """`{"chosen", "rejected", "loss"}` of each pair: the rewards β · log π/π_ref of both answers, and the loss."""
        return [dict(zip(("chosen", "rejected", "loss"), map(float, piece), strict=True)) for piece in pieces]

    def decode(self, answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """`{"text"}` per generated answer, `{"preferred", "margin"}` per pair."""
        return [{"text": answer["text"]} if "text" in answer else decoded(answer) for answer in answers]

    def corpus_scores(
        self, answers: list[dict[str, Any]], references: Any = None, names: Sequence[str] | None = None
    ) -> Mapping[str, CorpusScore]:
        """Every metric of pairs; references are not needed. Raises DeltatuneError for generated texts."""
        if any("text" in answer for answer in answers):
            raise DeltatuneError("generated texts have no preference scores: score rows with both answers")
        margins = np.array([answer["chosen"] - answer["rejected"] for answer in answers], np.float64)
        return {
            "accuracy": mean_score((margins > 0) + 0.5 * (margins == 0)),
            "reward_margin": mean_score(margins),
            "preference_loss": mean_score([answer["loss"] for answer in answers]),
        }

    def describe(self) -> str:
        """One line."""
        reference = "the base" if self.reference == BASE else f"the adapter {self.reference!r}"
        loss = f"{self.loss_type} loss with beta {self.beta:g} against {reference}"
        return (
            f"the better of two answers to {' and '.join(self.text)}, {loss}, at most {self.max_length} tokens in all, "
            f"scored by {self.metric}"
        )


def decoded(answer: Mapping[str, Any]) -> dict[str, Any]:
    """The answer that has the higher reward, and by how much."""
    margin = answer["chosen"] - answer["rejected"]
    return {"preferred": "chosen" if margin > 0 else "rejected" if margin < 0 else "neither", "margin": margin}


class PairEncoder(PromptEncoder):
    """Prompts with two answers each as tokens of one tokenizer."""

    def examples(self, rows: Sequence[Row], labelled: bool) -> list[Example]:
        """The rows with their chosen answers, checked; of conversations the messages before the answer."""
        task = self.task
        prompts = {name: column(rows, name) for name in task.text}
        problems = [
            f"row {i}: {name} is {value!r}, neither a text nor messages"
            for name, values in prompts.items()
            for i, value in enumerate(values)
            if not isinstance(value, str) and not is_conversation(value)
        ]
        raise_listed(problems)
        chats = [i for i in range(len(rows)) if not isinstance(prompts[task.text[0]][i], str)]
        if chats and not self.chat:
            raise DeltatuneError(
                f"row {chats[0]}: its prompt is a conversation, which the form {task.prompt!r} cannot write: set "
                "prompt='chat'"
            )
        answers: Sequence[str | None] = [None] * len(rows)
        if labelled:
            answers, rejected = text_column(rows, task.label), text_column(rows, REJECTED)
            empty = [i for i, pair in enumerate(zip(answers, rejected, strict=True)) if not all(map(str.strip, pair))]
            raise_listed([f"row {i}: {task.label} or {REJECTED} is empty" for i in empty])
            equal = [i for i, pair in enumerate(zip(answers, rejected, strict=True)) if pair[0] == pair[1]]
            raise_listed([f"row {i}: {task.label} and {REJECTED} are equal" for i in equal])
            self.rejected = dict(enumerate(rejected))
        return [
            self._example({name: values[i] for name, values in prompts.items()}, answers[i]) for i in range(len(rows))
        ]

    def _example(self, values: dict[str, Any], answer: str | None) -> Example:
        (first, *_) = values.values()
        return Example(values, (), answer) if isinstance(first, str) else Example({}, first, answer)

    def encode(self, rows: Sequence[Row], positions: int | None, positions_taken: int, labelled: bool) -> Encoded:
        """Rows as tokens: of labelled rows the prompt with each answer. The facts of a row are its prompt."""
        if not labelled:
            return super().encode(rows, positions, positions_taken, labelled)
        check_length(self.task.max_length, positions, positions_taken)
        examples = self.examples(rows, labelled)
        encoded, facts, truncated = [], [], 0
        for i, example in enumerate(examples):
            try:
                row, prompt, cut = self.pair(example, self.rejected[i])
            except DeltatuneError as error:
                raise DeltatuneError(f"row {i}: {error}") from None
            encoded.append(row)
            facts.append({"prompt": prompt})
            truncated += cut
        same = sum(row["input_ids"] == row[REJECTED_IDS] and row["labels"] == row[REJECTED_LABELS] for row in encoded)
        notes = (f"{same} of {len(rows)} pairs have equal answers once cut: nothing is learned from them",) * (same > 0)
        return Encoded(encoded, truncated, None, facts, [example.answer for example in examples], notes=notes)

    def pair(self, example: Example, rejected: str) -> tuple[TokenRow, list[int], bool]:
        """The encoded pair, its prompt's tokens, and whether anything was cut."""
        example, prompt, cut = self.fitted(example)
        (better, cut_better), (worse, cut_worse) = (
            self.row(example._replace(answer=answer), prompt) for answer in (example.answer, rejected)
        )
        row = {**better, REJECTED_IDS: worse["input_ids"], REJECTED_LABELS: worse["labels"]}
        return row, prompt, cut or cut_better or cut_worse


def is_conversation(value: Any) -> bool:
    """Whether a value is messages, the last of them to be answered."""
    return (
        isinstance(value, (list, tuple))
        and bool(value)
        and all(isinstance(message, Mapping) and {"role", "content"} <= set(message) for message in value)
        and value[-1]["role"] != "assistant"
    )
