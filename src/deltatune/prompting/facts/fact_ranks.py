"""Ranks of objects: how likely a model finds the object of each fact in the blank of a wording."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from deltatune.core.host import Host
from deltatune.models.hardware import uses_bfloat16
from deltatune.prompting.prompt_cost import PromptCost, counted
from deltatune.tasks.collator import collator_for
from deltatune.tasks.fact_completion import FactCompletion
from deltatune.tasks.task import Row
from deltatune.tasks.tokenization import longest_input
from deltatune.training.inference.likelihood import negative_log_likelihoods
from deltatune.training.inference.prediction import free_positions, positions_taken


@dataclass(frozen=True)
class WordingRanks:
    """What a model answers to N facts in one wording."""

    wording: str
    """As the user wrote it."""
    ranks: list[int | None]
    """Place of each object among the ranked tokens (N,), from 1; None for rows that were left out."""
    words: list[str | None]
    """The likeliest word of each row (N,)."""
    left_out: dict[str, int]
    """How many rows were left out, by reason."""
    cost: PromptCost = field(default_factory=PromptCost)
    """What the model read."""
    source: str = "wording"
    """wording; trained, for a prompt that was trained here; adapter, for the wording that an adapter was trained in."""
    training: Mapping[str, Any] | None = None
    """Facts of the training, for a trained one."""

    @property
    def counted(self) -> list[int]:
        """Ranks of the rows that were not left out."""
        return [rank for rank in self.ranks if rank is not None]


def rank_objects(
    host: Host,
    tokenizer: PreTrainedTokenizerBase,
    task: FactCompletion,
    rows: Sequence[Row],
    *,
    name: str | None = None,
    wording: str = "",
    source: str = "wording",
    precision: str = "float32",
) -> WordingRanks:
    """Rank the object of each of N rows at the blank of the task's wording, Petroni et al. 2019.

    name: the adapter that acts; None for the model as it is. Rows whose object is not one token, is no candidate, or
    that are longer than the model's positions, are left out and counted.
    """
    positions = longest_input(host.model)
    taken = 0 if name is None else positions_taken(host, name)
    encoded, problems = task.encode_scorable(rows, tokenizer, positions, taken)
    ranks: list[int | None] = [None] * len(rows)
    words: list[str | None] = [None] * len(rows)
    cost = PromptCost()
    if len(encoded):
        longest = positions if name is None else free_positions(host, name)
        collate = collator_for(host.model, tokenizer, encoded[0], longest, left=False)
        bfloat16 = uses_bfloat16(host.model, precision)
        route = None if name is None else {name: 1.0}
        with counted(host) as cost, host.using(route, training=False), torch.inference_mode():
            answers = task.collect(negative_log_likelihoods(host, task, encoded, collate, bfloat16), encoded)
        numbers = (i for i in range(len(rows)) if i not in problems)
        for number, answer in zip(numbers, answers, strict=True):
            ranks[number], words[number] = answer["ranks"][0], answer["word"]
    return WordingRanks(wording or task.template, ranks, words, dict(Counter(problems.values())), cost, source)
