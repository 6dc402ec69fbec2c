"""Row states: the output of one block of a frozen base for every row of a list, computed in groups, once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deltatune.core.host import Host
from deltatune.tasks.collator import PaddingCollator
from deltatune.tasks.task import TokenRow
from deltatune.training.inference.batches import length_sorted_batches
from deltatune.training.scaling.feature_cache import CACHE, Inputs, inputs_of, key_of, row_spans

GROUP = 64
"""Rows that are computed together in training; in inference it is the batch."""


@dataclass(frozen=True)
class RepeatedRows:
    """Rows that will be read again, or may be."""

    rows: Sequence[TokenRow]
    collate: PaddingCollator
    group: int = GROUP
    """Rows of similar length that are computed together. A row's values do not depend on the batch that reads it."""
    certain: bool = True
    """Whether they are read several times now; otherwise they are kept when they are read for the second time."""


@dataclass(frozen=True)
class RowGroups:
    """Rows as the base reads them, in the groups in which they are computed."""

    groups: Sequence[Inputs]
    spans: Sequence[Sequence[tuple[bytes, int, int]]]
    """Of each group, what `row_spans` says of its rows."""

    @property
    def padded_left(self) -> bool:
        """Whether a row has padding on the left."""
        return any(first for members in self.spans for _, first, _ in members)

    def key(self, host: Host, what: object) -> str:
        """Key of what a base computes for them."""
        shapes = [tuple(group["input_ids"].shape) for group in self.groups]
        facts = ("states", what, shapes, sorted(self.groups[0]), self.padded_left)
        return key_of(host, facts, (row for members in self.spans for row, _, _ in members))


def grouped_rows(repeated: RepeatedRows, device: torch.device) -> RowGroups | None:
    """Rows in groups of similar length; None where the tokens of a row are not all there is to read of it."""
    batches = length_sorted_batches(repeated.rows, repeated.collate, repeated.group, device)
    groups = [inputs_of(batch) for _, batch in batches]
    if not groups or any("attention_mask" not in group or "input_ids" not in group for group in groups):
        return None
    listed = [row_spans(group) for group in groups]
    spans = [members for members in listed if members is not None]
    return RowGroups(groups, spans) if len(spans) == len(groups) else None


class RowStates:
    """States (tokens, D) of every row, in groups; a group is computed when one of its rows is first read."""

    def __init__(self, rows: RowGroups, size: int) -> None:
        """`size`: bytes of one token's state."""
        self.groups = rows.groups
        self.states: list[Tensor | None] = [None] * len(rows.groups)
        self.device = rows.groups[0]["input_ids"].device
        self.users = 0
        self.places: dict[bytes, tuple[int, int]] = {}
        """Group, and first token in it, by a row's tokens."""
        tokens = 0
        for group, members in enumerate(rows.spans):
            start = 0
            for key, _, count in members:
                self.places.setdefault(key, (group, start))
                start += count
            tokens += start
        self.bytes = tokens * size

    def gather(self, inputs: Inputs, compute: Callable[[Inputs], Tensor]) -> Tensor | None:
        """States (B, T, D) of a batch, 0 at padding; None if it has a row that is not one of these.

        `compute` returns those of a group (B, T, D).
        """
        spans = row_spans(inputs)
        if spans is None or any(key not in self.places for key, _, _ in spans):
            return None
        result: Tensor | None = None
        for i, (key, first, count) in enumerate(spans):
            group, start = self.places[key]
            states = self._of_group(group, compute)
            if result is None:
                result = states.new_zeros(*inputs["input_ids"].shape, states.shape[-1])
            result[i, first : first + count] = states[start : start + count]
        return result

    def _of_group(self, group: int, compute: Callable[[Inputs], Tensor]) -> Tensor:
        states = self.states[group]
        if states is None:
            inputs = self.groups[group]
            states = self.states[group] = compute(inputs)[inputs["attention_mask"] != 0]  # (tokens, D)
        return states


def open_states(key: str, rows: RowGroups, size: int) -> RowStates | None:
    """The states of these rows from the cache, or new ones in it; None where there is no room. `size` as above."""
    states = CACHE.get(key)
    if states is None:
        states = RowStates(rows, size)
        if not CACHE.add(key, states):
            return None
    assert isinstance(states, RowStates)
    return states
