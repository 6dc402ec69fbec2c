"""The key-value cache of rows that generate together: rows join and leave at any step, and nothing is concatenated.

All rows end at one column, so that a step writes one column; a row shorter than the longest has masked columns in front
of its own. In a layer's tensors (places, H_kv, columns, K) the columns from `start` to `end` are in use:

    place 0   . . a a a a a|       a step writes the column at the bar
    place 1   . . . . b b b|
    place 2   c c c c c c c|       without it, `start` moves two columns to the right
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from deltatune.serving.engine.routed_host import RoutedHost

States = list[tuple[Tensor, Tensor]]
"""Keys and values (H_kv, T, K) of one row's T tokens in each layer."""
ROOM = 64
"""Columns that a cache has to spare for further steps when it is made or moved."""


class RunningCache:
    """Keys and values of running rows, and where they are."""

    def __init__(self) -> None:
        self.lengths: list[int] = []
        """Tokens of the row at each place; places are 0 to B - 1, without gaps."""
        self.end = 0
        """The column that the next step writes."""
        self.first, self.last = 0, 0
        """The rows of the next pass: from this place to the one before that."""
        self.layers: list[RunningLayer] = []
        self.cache = Cache(layers=self.layers)  # type: ignore[arg-type]

    @property
    def start(self) -> int:
        """The first column that a row needs."""
        return self.end - max(self.lengths, default=0)

    @property
    def columns(self) -> int:
        """Columns that the tensors have."""
        return self.layers[0].stored_keys.shape[2] if self.layers else 0

    @property
    def bytes(self) -> int:
        """Bytes of the tensors."""
        return sum(tensor.nbytes for layer in self.layers for tensor in (layer.stored_keys, layer.stored_values))

    def mask(self) -> Tensor:
        """The attention mask (rows, end - start + 1) of the next pass: 1 at the rows' own columns and the new one."""
        width = self.end - self.start
        lengths = torch.tensor(self.lengths[self.first : self.last])
        return (torch.arange(width + 1) >= (width - lengths)[:, None]).long()

    def choose(self, first: int, last: int) -> Cache:
        """The cache as the next pass of the rows `first` to `last - 1` sees it."""
        self.first, self.last = first, last
        return self.cache

    def advance(self) -> None:
        """A step has written its column for every row."""
        self.end += 1
        self.lengths = [length + 1 for length in self.lengths]

    def join(self, states: States) -> int:
        """Take in a row with the keys and values of its tokens; returns its place, the last one."""
        place, length = len(self.lengths), states[0][0].shape[1]
        if not self.layers:
            self.layers += [RunningLayer(self, keys, values) for keys, values in states]
        self._make_room(place + 1, length)
        for layer, (keys, values) in zip(self.layers, states, strict=True):
            layer.write(place, self.end - length, self.end, keys, values)
        self.lengths.append(length)
        return place

    def states(self, place: int) -> States:
        """Keys and values of a row's tokens, as views."""
        columns = slice(self.end - self.lengths[place], self.end)
        return [(each.stored_keys[place, :, columns], each.stored_values[place, :, columns]) for each in self.layers]

    def leave(self, place: int) -> int | None:
        """Let a row go. The last row takes its place, and its old place is returned; None if none has moved."""
        last = len(self.lengths) - 1
        moved = None
        if place != last:
            for layer in self.layers:
                layer.move(last, place, self.end)
            self.lengths[place], moved = self.lengths[last], last
        self.lengths.pop()
        if not self.lengths:  # an idle engine holds no memory
            self.clear()
        return moved

    def clear(self) -> None:
        """Let all rows go."""
        self.lengths, self.end = [], 0
        self.layers.clear()

    def make_room_for_step(self) -> None:
        """Have a column free for the next step."""
        self._make_room(len(self.lengths), 0)

    def _make_room(self, places: int, least: int) -> None:
        """Have so many places, at least so many columns up to `end`, and one behind it; rows move if they must."""
        stored = self.layers[0].stored_keys
        if places <= stored.shape[0] and least <= self.end < stored.shape[2]:
            return
        used = slice(self.start, self.end)
        end = max(least, used.stop - used.start)
        columns = stored.shape[2]
        while columns <= end + min(ROOM, end):
            columns = max(2 * columns, ROOM)
        if columns > 4 * (end + ROOM):  # the longest row is gone
            columns = 2 * (end + ROOM)
        size = 4
        while size < places:
            size *= 2
        for layer in self.layers:
            layer.rearrange(size, columns, len(self.lengths), used, end)
        self.end = end


class RunningLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer of a RunningCache, as transformers' attention sees it."""

    is_sliding = False  # all tokens are kept: a model's sliding window is part of its mask

    def __init__(self, rows: RunningCache, keys: Tensor, values: Tensor) -> None:
        """keys and values (H_kv, T, K): of the first row, for their shapes."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows = rows
        self.stored_keys = keys.new_zeros(0, keys.shape[0], 0, keys.shape[2])
        self.stored_values = values.new_zeros(0, values.shape[0], 0, values.shape[2])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the keys and values (rows, H_kv, 1, K) of a step; return those of all columns in use."""
        rows, end = slice(self.rows.first, self.rows.last), self.rows.end + key_states.shape[2]
        self.stored_keys[rows, :, self.rows.end : end] = key_states
        self.stored_values[rows, :, self.rows.end : end] = value_states
        columns = slice(self.rows.start, end)
        return self.stored_keys[rows, :, columns], self.stored_values[rows, :, columns]

    def get_seq_length(self) -> int:
        """Columns before the next step."""
        return self.rows.end - self.rows.start

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns with the step's own, and the number of the first one."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """No limit."""
        return -1

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: it is made with its shapes."""

    def write(self, place: int, start: int, end: int, keys: Tensor, values: Tensor) -> None:
        """Set a place's columns; those in front are masked, and 0 so that no value there spoils a sum."""
        for stored, new in ((self.stored_keys, keys), (self.stored_values, values)):
            stored[place, :, :start] = 0
            stored[place, :, start:end] = new

    def move(self, old: int, new: int, end: int) -> None:
        """Copy one place to another."""
        for stored in (self.stored_keys, self.stored_values):
            stored[new, :, :end] = stored[old, :, :end]

    def rearrange(self, places: int, columns: int, rows: int, used: slice, end: int) -> None:
        """Make the tensors anew, with the used columns of the rows in front of `end`."""
        made = []
        for stored in (self.stored_keys, self.stored_values):
            new = stored.new_zeros(places, stored.shape[1], columns, stored.shape[3])
            new[:rows, :, end - (used.stop - used.start) : end] = stored[:rows, :, used]
            made.append(new)
        self.stored_keys, self.stored_values = made


def next_logits(routed: RoutedHost, cache: RunningCache, first: int, last: int, tokens: list[int]) -> Tensor:
    """Logits (rows, V) behind the next token of the rows `first` to `last - 1`, under the current route."""
    device = routed.device
    chosen = cache.choose(first, last)
    with torch.autocast(device.type, torch.bfloat16, enabled=routed.bfloat16):
        outputs = routed.host.model(
            input_ids=torch.tensor(tokens, device=device)[:, None],
            attention_mask=cache.mask().to(device),
            position_ids=torch.tensor(cache.lengths[first:last], device=device)[:, None],
            past_key_values=chosen,
            use_cache=True,
        )
    logits: Tensor = outputs.logits[:, -1].float()
    return logits


def states_of(cache: Cache, row: int, start: int, end: int) -> States:
    """Keys and values of one row's columns of a pass, as views."""
    return [(layer.keys[row, :, start:end], layer.values[row, :, start:end]) for layer in cache.layers]  # type: ignore[index,union-attr]


def joined_states(parts: Sequence[States]) -> States:
    """Keys and values of consecutive parts of one row as one."""
    if len(parts) == 1:
        return parts[0]
    layers = zip(*parts, strict=True)
    return [(torch.cat([keys for keys, _ in layer], 1), torch.cat([v for _, v in layer], 1)) for layer in layers]
