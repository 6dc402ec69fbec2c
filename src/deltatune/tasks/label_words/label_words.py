"""LabelWords: the task of classes whose words are scored in the blank of a template, by the model's own head.

Schick and Schütze 2021, https://arxiv.org/abs/2001.07676; Gao et al. 2021, https://arxiv.org/abs/2012.15723;
Brown et al. 2020, https://arxiv.org/abs/2005.14165
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.core.input_validation.field_validation import check_fields, shortened
from deltatune.models.architecture import Loads
from deltatune.tasks.classification import Classify, joined_words
from deltatune.tasks.label_words.prompt_rows import PromptRow, TemplateEncoder, special_form
from deltatune.tasks.label_words.verbalizer import (
    Words,
    check_words,
    nested_tuples,
    word_tokens,
    words_in_order,
    words_of_names,
)
from deltatune.tasks.prompts.templates import Template
from deltatune.tasks.row_columns import column, raise_listed
from deltatune.tasks.task import Encoded, Row, TokenRow
from deltatune.tasks.tokenization import check_length

Scoring = Literal["likelihood", "probability", "logit", "channel"]
DEMONSTRATIONS = "(demonstrations)"
"""A column of rows with demonstrations of their own (a list of texts), which take the place of the task's."""


@dataclass(frozen=True)
class LabelWords(Classify):
    """One label for a text or a pair of texts: the class whose word fits best into the blank of a template.

    No parameter is new: masked models read the blank at their mask token, left-to-right models at the end of the text,
    T5 at a sentinel.
    """

    name: ClassVar[str] = "label-words"
    loads: ClassVar[Loads] = "words"
    may_be_unanswered: ClassVar[bool] = True
    inference_fields: ClassVar[tuple[str, ...]] = ("metric", "positive", "scoring")

    text: tuple[str, ...] = ()
    """The text columns; by default those of the template."""
    template: str = ""
    """The text with a blank: "{text} It was {mask}."; see `deltatune.Template`."""
    more_templates: tuple[str, ...] = ()
    """Further templates: every row is read in each of them, and the probabilities of its classes are averaged."""
    template_weights: tuple[float, ...] = ()
    """Weight of each template in that mean; by default all are equal."""
    words: Words = ()
    """One or several words for each class, in the order of `labels`; by default the class names in words."""
    scoring: Scoring = "likelihood"
    """Score of a class: `likelihood`, the mean over its words of the log-probability a token; `probability`, the sum of
    its words' probabilities; `logit`, the mean of their logits, as in PET. All are the same for words of one token.
    `channel`: the mean log-probability of a token of the text behind the word, p(text | word), of a left-to-right model
    whose template begins with the blank (Min et al. 2022, https://arxiv.org/abs/2108.04106)."""
    demonstrations: tuple[tuple[str, ...], ...] = ()
    """Sets of filled templates that are shown with every row, the first ones the oldest: before it to models that
    generate text, behind it to masked models. With several sets the scores of the classes are averaged."""
    separator: str = "\n\n"
    """Text between demonstrations; masked models have their separator token."""
    calibration: tuple[tuple[float, ...], ...] = ()
    """What is added to the scores of the classes, for each prompt (each set within each template) or one for all."""

    def __post_init__(self) -> None:
        for name in ("labels", "text", "more_templates", "template_weights", "words", "demonstrations", "calibration"):
            object.__setattr__(self, name, nested_tuples(getattr(self, name)))  # as JSON and YAML have them
        wrong_words = ""
        try:
            words = words_in_order(self.words, self.labels)
        except DeltatuneError as error:
            wrong_words, words = str(error), words_of_names(self.labels)
        object.__setattr__(self, "words", words)
        check_fields(self)
        templates, problems = self._read_templates()
        problems += [wrong_words] if wrong_words else []
        columns = tuple(dict.fromkeys(name for template in templates for name in template.columns))
        object.__setattr__(self, "text", self.text or columns or ("text",))
        if len(self.labels) < 2:
            problems.append("label words are for classes: labels must name at least two")
        problems += [
            f"the template {template.text!r} names {name!r}, which is not a text column{nearest(name, self.text)}; "
            f"columns: {', '.join(self.text)}"
            for template in templates
            for name in template.columns
            if name not in (*self.text, self.label)
        ]
        problems += [
            f"the template {template.text!r} names {self.label!r}, the column of the labels, so it would give the "
            "answer away; leave it out"
            for template in templates
            if self.label in template.columns
        ]
        problems += check_words(self.words, self.labels)
        if len({template.tokens for template in templates}) > 1:
            problems.append("templates of one prompt must have the same number of virtual tokens")
        weights, count = self.template_weights, 1 + len(self.more_templates)
        if weights and not (len(weights) == count and min(weights) >= 0 < sum(weights) < math.inf):
            problems.append(f"template_weights must be {count} numbers of at least 0, one for each template, not all 0")
        if any(len(each) != len(self.labels) for each in self.calibration):
            problems.append(f"calibration must give a number for each of the {len(self.labels)} classes")
        if not all(math.isfinite(value) for each in self.calibration for value in each):
            problems.append("calibration must be finite numbers")
        if len(self.calibration) > 1 and len(self.calibration) != self.prompts:
            problems.append(f"calibration must be for one prompt or for each of the {self.prompts}")
        if self.mark:
            problems.append("mark is for a classification with a head; name the entities' columns in the template")
        try:
            super().__post_init__()
        except DeltatuneError as error:
            problems.append(str(error))
        raise_all(problems)

    def _read_templates(self) -> tuple[list[Template], list[str]]:
        """The templates that can be read, and what is wrong with the others."""
        templates, problems = [], []
        if not self.template.strip():
            problems.append("label words need a template with a blank, such as template='{text} It was {mask}.'")
        for text in (self.template, *self.more_templates) if self.template.strip() else self.more_templates:
            try:
                templates.append(Template(text))
            except DeltatuneError as error:
                problems.append(str(error))
        return templates, problems

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Read `to_json`'s result."""
        return super().from_json({name: nested_tuples(value) for name, value in data.items()})

    @cached_property
    def templates(self) -> tuple[Template, ...]:
        """All templates."""
        return tuple(Template(text) for text in (self.template, *self.more_templates))

    @property
    def prompts(self) -> int:
        """Number of prompts that a row is read in: templates times sets of demonstrations."""
        return (1 + len(self.more_templates)) * max(1, len(self.demonstrations))

    @property
    def has_virtual_tokens(self) -> bool:
        """Whether the template itself places an adapter's virtual tokens."""
        return any(part.kind == "virtual" for template in self.templates for part in template.parts)

    # --- rows to tokens ---

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
        """Fill the rows into the templates; columns of longer rows are cut, and the rows counted.

        Where there is no room for all demonstrations, the oldest go. Raises DeltatuneError for a template that the
        model cannot read, words that the tokenizer does not know, and what `Classify.encode` refuses.
        """
        if self.has_virtual_tokens:
            positions_taken = 0  # they are tokens of the row
        check_length(self.max_length, positions, positions_taken)
        texts = [dict(zip(self.text, values, strict=True)) for values in self._texts(rows)]
        labels = self._labels(rows) if labelled else [None] * len(rows)
        makers = self._makers(tokenizer, joined, any(row.get(DEMONSTRATIONS) for row in rows))
        sets = self._demonstration_sets(rows)
        per_row = len(makers) * (len(sets[0]) if sets else 1)
        made: list[list[PromptRow | str]] = [[] for _ in rows]
        for maker in makers:
            asked = [(i, shown) for i, each in enumerate(sets) for shown in each]
            results = maker.rows([texts[i] for i, _ in asked], [shown for _, shown in asked], self.separator)
            for (i, _), result in zip(asked, results, strict=True):
                made[i].append(result)
        raise_listed([
            f"row {i}: {problem}"
            for i, results in enumerate(made)
            for problem in dict.fromkeys(each for each in results if isinstance(each, str))
        ])  # fmt: skip
        pieces = [[each for each in results if isinstance(each, PromptRow)] for results in made]
        cut = [i for i, results in enumerate(pieces) if any(each.cut for each in results)]
        if self.too_long == "error" and cut:
            raise DeltatuneError(
                f"{len(cut)} of {len(rows)} texts are longer than max_length={self.max_length} tokens, first row "
                f"{cut[0]}; raise max_length or choose too_long='truncate'"
            )
        encoded: list[TokenRow] = [
            {**each.row, **({} if label is None else {"label": label})}
            for results, label in zip(pieces, labels, strict=True)
            for each in results
        ]
        notes = self._room_notes(pieces)
        if len(encoded) == len(rows):
            return Encoded(encoded, truncated=len(cut), notes=notes)
        owners = [i for i in range(len(rows)) for _ in range(per_row)]
        references: Any = np.asarray(labels) if labelled else None
        return Encoded(encoded, len(cut), owners, [None] * len(rows), references, notes=notes)

    def _room_notes(self, pieces: Sequence[Sequence[PromptRow]]) -> tuple[str, ...]:
        """How many rows have no room for all demonstrations."""
        left_out = [max((each.left_out for each in results), default=0) for results in pieces]
        rows = sum(map(bool, left_out))
        return () if not rows else (
            f"{rows} of {len(pieces)} rows have no room for all of their demonstrations within {self.max_length} "
            f"tokens: up to {max(left_out)} are left out, the furthest from the row first",
        )  # fmt: skip

    def _demonstration_sets(self, rows: Sequence[Row]) -> list[tuple[tuple[str, ...], ...]]:
        """The sets of demonstrations of each row, as many of each. Raises DeltatuneError for other values."""
        sets, problems = [], []
        for i, row in enumerate(rows):
            own = row.get(DEMONSTRATIONS)
            if own is None:
                sets.append(self.demonstrations or ((),))
            elif isinstance(own, (list, tuple)) and all(isinstance(text, str) for text in own):
                sets.append((tuple(own),))
            else:
                problems.append(f"row {i}: {DEMONSTRATIONS} is {shortened(own)}; it must be a list of texts")
        if len(set(map(len, sets))) > 1:
            problems.append(
                f"some rows have {DEMONSTRATIONS} of their own, and the others the task's {len(self.demonstrations)} "
                "sets: give them to every row, or to none"
            )
        raise_listed(problems)
        return sets

    def _makers(self, tokenizer: PreTrainedTokenizerBase, joined: bool, demonstrated: bool) -> list[TemplateEncoder]:
        """One for each template. Raises DeltatuneError listing what the model cannot read, words included."""
        form = special_form(tokenizer, joined)
        makers, problems = [], []
        for template in self.templates:
            try:
                words = word_tokens(self.words, template, tokenizer)
            except DeltatuneError as error:
                problems.append(str(error))
                continue
            maker = TemplateEncoder(
                template, words, tokenizer, form, self.max_length, self.words[0][0], self.scoring == "channel"
            )
            problems += maker.problems(demonstrated or bool(self.demonstrations))
            if not (problems or maker.room > 0):
                longest = max(map(len, words))
                problems.append(
                    f"max_length={self.max_length} leaves no room for a text beside words of up to {longest} tokens; "
                    "raise it, or choose shorter words"
                )
            makers.append(maker)
        raise_all(list(dict.fromkeys(problems)))
        return makers

    def _texts(self, rows: Sequence[Row], marked: Sequence[Any] = ()) -> list[tuple[str, ...]]:
        columns = []
        for name in self.text:
            values = [joined_words(value) for value in column(rows, name)]
            raise_listed([
                f"row {i}: {name} is {value!r}, not a text"
                for i, value in enumerate(values)
                if not isinstance(value, (str, int, float)) or isinstance(value, bool)
            ])  # fmt: skip
            columns.append([str(value) for value in values])
        return list(zip(*columns, strict=True))

    # --- scores of words to a loss and answers ---

    def head_config(self, config: PretrainedConfig, **over: Any) -> None:  # type: ignore[override]
        """None: the model's own head answers."""

    def class_scores(self, words: Tensor, tokens: Tensor) -> Tensor:
        """Scores of the classes (B, C), from those of words (B, W), summed over their `tokens` (B, W)."""
        sizes = [len(of_class) for of_class in self.words]
        by_class, counts = torch.split(words, sizes, 1), torch.split(tokens, sizes, 1)
        if self.scoring == "probability":
            return torch.stack([scores.logsumexp(1) for scores in by_class], 1)
        return torch.stack([(scores / count).mean(1) for scores, count in zip(by_class, counts, strict=True)], 1)

    def collect(self, pieces: Sequence[NDArray[Any]], encoded: Encoded) -> NDArray[Any]:
        """Scores of the classes (N, C), calibrated; of several prompts, logarithms of their mean probabilities."""
        logits = np.stack(pieces) if len(pieces) else np.zeros((0, self.outputs), np.float32)
        rows = encoded.examples
        prompts = len(logits) // rows if rows else 1
        logits = logits.reshape(rows, prompts, self.outputs)
        if self.calibration:
            logits = logits + np.asarray(self.calibration, logits.dtype)  # (P or 1, C)
        if prompts == 1:
            return logits[:, 0]
        log_probabilities = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
        mean: NDArray[Any] = np.logaddexp.reduce(log_probabilities + self._log_shares(prompts)[:, None], axis=1)
        return mean.astype(np.float32)

    def _log_shares(self, prompts: int) -> NDArray[Any]:
        """Logarithm of the share of each prompt in the mean (P,): a template's is shared by its demonstration sets."""
        weights = np.asarray(self.template_weights or [1.0] * len(self.templates))
        shares = np.repeat(weights, prompts // len(weights))
        with np.errstate(divide="ignore"):  # a template without weight
            logarithms: NDArray[Any] = np.log(shares / shares.sum())
        return logarithms

    def describe(self) -> str:
        """One sentence."""
        words = ", ".join("/".join(of_class) for of_class in self.words[:6]) + (", ..." if len(self.words) > 6 else "")
        shown = f" after {len(self.demonstrations[0])} demonstrations" if self.demonstrations else ""
        return (
            f"one of {len(self.labels)} labels by the words {words} in {self.template!r}{shown}, at most "
            f"{self.max_length} tokens, scored by {self.metric_name(self.metric)}"
        )


def as_label_words(task: Classify, **fields: Any) -> LabelWords:
    """A classification through the model's own head instead of a new one; `fields` are those of LabelWords.

    Raises DeltatuneError for tasks without one class a row.
    """
    if isinstance(task, LabelWords):
        return replace(task, **fields)
    if type(task) is not Classify or not task.labels:
        raise DeltatuneError(
            f"label words are for one class a row, and this task is {task.describe()}; choose a method with a head"
        )
    common: Mapping[str, Any] = {
        name: getattr(task, name)
        for name in ("labels", "text", "label", "max_length", "metric", "too_long", "positive")
    }
    return LabelWords(**{**common, **fields})
