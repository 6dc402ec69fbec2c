"""Reading of prompts: passes that compute the keys and values of several rows' next tokens, whatever each has before.

Rows are padded on the right, and what they have read before lies in front of it, padded on the left. So the tokens of a
row stay next to each other, as sliding windows need it:

    row 0   . . p p p|n n n n       p: read before, n: new
    row 1   p p p p p|n n . .
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from deltatune.core.host import Host
from deltatune.serving.engine.running_cache import States, joined_states, states_of
from deltatune.training.forward import selected_states
from deltatune.training.inference.batches import device_of


@dataclass
class PromptReading:
    """A prompt that is being read."""

    ids: list[int]
    """Its tokens, virtual ones included."""
    read: int = 0
    """How many of them were read."""
    parts: list[States] = field(default_factory=list)
    """Keys and values of the tokens that were read, part after part."""
    at_once: bool = False
    """Whether it must be read in one pass that no row has begun before: an adapter looks at the prompt as a whole."""

    @property
    def left(self) -> int:
        """Tokens that are still to be read."""
        return len(self.ids) - self.read

    @property
    def states(self) -> States:
        """Keys and values of all tokens that were read."""
        self.parts = [joined_states(self.parts)]
        return self.parts[0]


def read_on_(host: Host, rows: Sequence[PromptReading], counts: Sequence[int], bfloat16: bool) -> Tensor:
    """Read each row's next `counts[i]` tokens under the current route; return logits (B, V) behind the last of them."""
    device = device_of(host)
    pasts = [row.read for row in rows]
    past, width = max(pasts), max(counts)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), past + width, dtype=torch.long)
    for i, (row, count) in enumerate(zip(rows, counts, strict=True)):
        ids[i, :count] = torch.tensor(row.ids[row.read : row.read + count])
        mask[i, past - row.read : past + count] = 1
    first, last = torch.tensor(pasts)[:, None], (torch.tensor(pasts) + torch.tensor(counts) - 1)[:, None]
    positions = (first + torch.arange(width)).clamp(max=last)  # padding has no position of its own
    cache = _past(rows, past)
    index = torch.tensor(counts, device=device) - 1

    def behind_last(states: Tensor) -> Tensor:
        return states[torch.arange(len(states), device=states.device), index][:, None]  # (B, 1, D)

    outputs: Any
    with selected_states(host.model, behind_last), torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
        outputs = host.model(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            position_ids=positions.to(device),
            past_key_values=cache,
            use_cache=True,
        )
    logits: Tensor = outputs.logits[:, -1].float()
    states = [states_of(cache, i, past, past + count) for i, count in enumerate(counts)]
    for row, count, new in zip(rows, counts, states, strict=True):
        row.parts.append(new)
        row.read += count
    return logits


def _past(rows: Sequence[PromptReading], columns: int) -> Cache:
    """A cache of the keys and values that the rows have read before, which all end at one column."""
    started = next((row for row in rows if row.read), None)
    if started is None:
        return Cache(layer_class_to_replicate=DynamicLayer)
    every = [row.states if row.read else None for row in rows]
    layers = []
    for number, like in enumerate(started.states):
        layer = DynamicLayer()  # type: ignore[no-untyped-call]
        layer.lazy_initialization(*like)
        made = [tensor.new_zeros(len(rows), tensor.shape[0], columns, tensor.shape[2]) for tensor in like]
        for i, states in enumerate(every):
            if states is not None:
                for whole, own in zip(made, states[number], strict=True):
                    whole[i, :, columns - own.shape[1] :] = own
        layer.keys, layer.values = made
        layers.append(layer)
    return Cache(layers=layers)  # type: ignore[arg-type]
