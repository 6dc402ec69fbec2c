"""Logits for rows: in eval mode, sorted by length inside, in row order outside."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError
from deltatune.core.host import Host
from deltatune.tasks.batches import Collate, collate_for
from deltatune.tasks.task import Encoded, Row, Task, TokenRow
from deltatune.tasks.tokens import longest_input
from deltatune.training.forward import adapter_logits, tokens_of
from deltatune.training.settings import half


def predict(
    host: Host,
    name: str,
    task: Task,
    rows: Sequence[Row] | Encoded,
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int = 64,
    precision: str = "auto",
) -> NDArray[Any]:
    """Return logits (N, C) in float32 for rows, encoded or not, with one adapter. Route and modes are left as found."""
    encoded = encoded_rows(host, name, task, rows, tokenizer, labelled=False)
    if not len(encoded):
        return np.zeros((0, 0), np.float32)
    collate = collate_on(host, name, tokenizer, encoded)
    bfloat16 = half(host.model, precision)
    with acting(host, name), torch.inference_mode():
        logits = in_batches(
            encoded, collate, batch_size, device_of(host), lambda b: adapter_logits(host, name, b, bfloat16)
        )
    found: NDArray[Any] = logits.float().cpu().numpy()
    return found


def encoded_rows(
    host: Host,
    name: str,
    task: Task,
    rows: Sequence[Row] | Encoded,
    tokenizer: PreTrainedTokenizerBase,
    labelled: bool = True,
) -> Encoded:
    """Encode rows that are not yet. Raises DeltatuneError for encoded ones too long for this adapter on this base."""
    if not isinstance(rows, Encoded):
        return encode_for(host, name, task, rows, tokenizer, labelled)
    positions, taken = longest_input(host.model), room(host, name)
    longest = max((len(row["input_ids"]) for row in rows), default=0)
    if positions is not None and longest + taken > positions:
        raise DeltatuneError(
            f"the encoded rows have up to {longest} tokens and adapter {name!r} adds {taken}, more than the "
            f"{positions} this model takes: encode them with max_length={positions - taken} or less"
        )
    return rows


def encode_for(
    host: Host, name: str, task: Task, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, labelled: bool = True
) -> Encoded:
    """Encode rows for one adapter on this base: its virtual tokens and shifted positions take room."""
    positions, taken = longest_input(host.model), room(host, name)
    return task.encode(rows, tokenizer, positions=positions, room=taken, labelled=labelled)


def collate_on(host: Host, name: str, tokenizer: PreTrainedTokenizerBase, rows: Sequence[TokenRow]) -> Collate:
    """How these rows become batches for this base; padding leaves the adapter its positions."""
    positions = longest_input(host.model)
    longest = None if positions is None else positions - room(host, name)
    return collate_for(host.model, tokenizer, rows[0], longest)


def room(host: Host, name: str) -> int:
    """Positions of the base that an adapter fills: its virtual tokens, and what it shifts real ones by."""
    shift = max((int(getattr(delta, "shift", 0)) for _, _, delta in host.adapters[name].entries()), default=0)
    return tokens_of(host, name) + (shift if host.sites.facts.position_modules else 0)


def device_of(host: Host) -> torch.device:
    """Where the base lives."""
    return next(host.model.parameters()).device


@contextmanager
def acting(host: Host, name: str, training: bool = False) -> Iterator[None]:
    """Let one adapter act alone, in eval mode unless `training`; afterwards route and modes are what they were."""
    route = host.route
    modes = [(module, module.training) for module in host.model.modules()]
    host.use(name)
    host.model.train(training)
    try:
        yield
    finally:
        host.use(dict(route.uniform) if route.rows is None else [dict(row) for row in route.rows])
        for module, mode in modes:
            module.training = mode


def in_batches(
    rows: Sequence[TokenRow],
    collate: Collate,
    batch_size: int,
    device: torch.device,
    compute: Callable[[dict[str, Tensor]], Tensor],
) -> Tensor:
    """Apply `compute` to batches of rows of similar length and return its results (N, ...) in row order."""
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]["input_ids"]), reverse=True)
    parts = []
    for start in range(0, len(order), batch_size):
        batch = collate([rows[row] for row in order[start : start + batch_size]])
        batch.pop("labels", None)
        parts.append(compute({name: tensor.to(device) for name, tensor in batch.items()}))
    found = torch.cat(parts)
    back = torch.empty_like(found)
    back[torch.tensor(order, device=found.device)] = found
    return back
