"""Whether packed rows stay apart on this model under this adapter: tried out, not believed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from deltatune.core.errors import DeltatuneError
from deltatune.core.host import Host
from deltatune.tasks.batches import Collate
from deltatune.tasks.task import TokenRow
from deltatune.training.batching import device_of
from deltatune.training.words import logits_of, word_outputs

TOLERANCE = 1e-3
"""Largest difference of logits that counts as rounding, relative to their size."""
PIECE = 24
"""Tokens of each row that are tried."""


@torch.no_grad()
def check_packing(host: Host, name: str, collate: Collate, rows: Sequence[TokenRow]) -> None:
    """Raise DeltatuneError if two rows in one sequence see each other, as models and methods may make them.

    The model is in eval mode for this and afterwards in the mode it was in.
    """
    if host.prompts:
        raise DeltatuneError(
            f"adapter {name!r} has a soft prompt, which rows packed into one sequence cannot each have in front; set "
            "packing off"
        )
    two = [_short(row) for row in rows[:2]]
    modes = [(module, module.training) for module in host.model.modules()]
    host.model.eval()
    try:
        together = _logits(host, Collate(collate.fill, packed=True, longest=2 * PIECE), two)
        apart = [_logits(host, Collate({**collate.fill, "attention_mask": 0}), [row]) for row in sorted(two, key=_size)]
    finally:
        for module, mode in modes:
            module.training = mode
    wanted = torch.cat(apart)
    if together.shape != wanted.shape or (together - wanted).abs().max() > TOLERANCE * wanted.abs().max():
        raise DeltatuneError(
            f"on this {type(host.model).__name__} with {host.adapters[name].method!r}, rows packed into one sequence "
            "see each other: it does not keep apart tokens whose positions start anew; set packing off"
        )


def _size(row: TokenRow) -> int:
    return -len(row["input_ids"])


def _short(row: TokenRow) -> TokenRow:
    ids = row["input_ids"][:PIECE]
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [-100, *ids[1:]]}


def _logits(host: Host, collate: Any, rows: list[TokenRow]) -> torch.Tensor:
    batch = {key: value.to(device_of(host)) for key, value in collate(rows).items() if key != "rows"}
    labels = batch.pop("labels")
    return logits_of(word_outputs(host, batch, labels)[0])
