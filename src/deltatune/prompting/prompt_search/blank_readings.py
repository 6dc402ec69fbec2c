"""What a model says at the blank of each row: logits of all words, and the states that they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError
from deltatune.models.hardware import uses_bfloat16
from deltatune.tasks.label_words.label_words import LabelWords
from deltatune.tasks.prompts.template_tokens import tokens_after
from deltatune.tasks.prompts.templates import Template
from deltatune.tasks.task import Row
from deltatune.tasks.tokenization import not_words, word_of
from deltatune.training.forward import language_model_head
from deltatune.training.inference.batches import device_of, length_sorted_batches
from deltatune.training.inference.prediction import adapter_collator
from deltatune.training.label_word_logits import place_logits
from deltatune.training.session import Session

MOST_ROWS = 512
"""Rows that a search reads at most; of more, the first ones of each class in turn."""


class BlankReadings(NamedTuple):
    """What a model says at the blank of N rows, in float32 on the CPU."""

    logits: Tensor
    """(N, W), of the words that were asked for."""
    states: Tensor
    """(N, D), what the last map of the language-model head reads."""


def read_blanks(
    session: Session, task: LabelWords, rows: Sequence[Row], columns: Sequence[int], batch_size: int = 64
) -> BlankReadings:
    """Read the blank of each row in the task's template; `columns` are the ids of the words (W) whose logits are kept.

    The adapter of the session acts. Where the blank of a row is several tokens, its first one is read.
    """
    own = replace(session, task=task)
    encoded, host = own.encode(rows), own.host
    collate, kept = adapter_collator(host, own.name, own.tokenizer, encoded), torch.tensor(columns)
    bfloat16 = uses_bfloat16(host.model, own.precision)
    states: list[Tensor] = []
    head = language_model_head(host.model)
    handle = head.register_forward_pre_hook(lambda module, args: states.append(args[0][0].float().cpu()))
    logits: list[Tensor] = []
    order: list[int] = []
    words = sum(map(len, task.words))
    try:
        with host.using({own.name: 1.0}, training=False), torch.inference_mode():
            for numbers, batch in length_sorted_batches(encoded, collate, batch_size, device_of(host)):
                firsts = torch.searchsorted(
                    batch["word_of"], words * torch.arange(len(numbers), device=batch["word_of"].device)
                )
                batch["places"] = batch["places"][batch["place_of"][firsts]]  # (B, 2), of each row's first word
                logits.append(place_logits(host, batch, bfloat16).cpu()[:, kept])
                order += numbers
    finally:
        handle.remove()
    back = torch.tensor(order).argsort()
    return BlankReadings(torch.cat(logits)[back], torch.cat(states)[back])


def token_words(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> dict[int, str]:
    """The tokens with a letter as words, special ones left out: id -> word."""
    special = set(not_words(tokenizer, vocabulary))
    ids = [token for token in range(min(vocabulary, len(tokenizer))) if token not in special]
    words = {token: word_of(tokenizer, token) for token in ids}
    return {token: word for token, word in words.items() if any(map(str.isalpha, word))}


def blank_words(
    tokenizer: PreTrainedTokenizerBase, template: Template, vocabulary: int, words: Mapping[int, str] | None = None
) -> dict[int, str]:
    """The words of one token in this blank: id -> word. A word has a letter, and its text becomes that id again.

    Gao et al. 2021 take the tokens that begin a word; so are these, wherever the blank follows a space.
    words: `token_words` of the tokenizer, where they are known.
    """
    words = token_words(tokenizer, vocabulary) if words is None else words
    before = template.part_before_blank
    context = before.text if before is not None and before.kind == "words" else ""
    read = tokens_after(context, list(words.values()), template.spaced_blank, tokenizer)
    return {token: word for (token, word), ids in zip(words.items(), read, strict=True) if ids == [token]}


def rows_in_turn(task: LabelWords, rows: Sequence[Row], most: int = MOST_ROWS) -> list[Row]:
    """At most `most` rows, the first ones of each class in turn, in their order.

    Raises DeltatuneError for classes without a row.
    """
    by_class: dict[str, list[int]] = {label: [] for label in task.labels}
    for i, row in enumerate(rows):
        by_class.setdefault(str(row.get(task.label)), []).append(i)
    missing = [label for label in task.labels if not by_class[label]]
    if missing:
        raise DeltatuneError(
            f"no training row has the class{'es' if len(missing) > 1 else ''} {', '.join(map(repr, missing[:20]))}, so "
            "nothing can be searched for; give rows of every class"
        )
    if len(rows) <= most:
        return list(rows)
    turns = sorted((turn, i) for each in by_class.values() for turn, i in enumerate(each))
    return [rows[i] for i in sorted(i for _, i in turns[:most])]


def class_numbers(task: LabelWords, rows: Sequence[Row]) -> Tensor:
    """Class numbers (N,) of labelled rows. Raises DeltatuneError for other labels."""
    numbers: Mapping[str, int] = {label: i for i, label in enumerate(task.labels)}
    values: list[Any] = [row.get(task.label) for row in rows]
    wrong = [f"{value!r}" for value in values if str(value) not in numbers]
    if wrong:
        raise DeltatuneError(f"{wrong[0]} is not a class; classes: {', '.join(map(repr, task.labels[:20]))}")
    return torch.tensor([numbers[str(value)] for value in values])
