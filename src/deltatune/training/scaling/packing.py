"""Check that rows packed into one sequence do not attend to each other on this model with this adapter."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from deltatune.core.delta import Delta
from deltatune.core.errors import DeltatuneError
from deltatune.core.host import Host
from deltatune.tasks.collator import PaddingCollator, concatenate_rows
from deltatune.tasks.task import IGNORED, TokenRow
from deltatune.training.forward import token_logits
from deltatune.training.inference.batches import device_of
from deltatune.training.task_model import labelled_outputs

TOLERANCE = 1e-3
"""Largest difference of logits that counts as rounding, relative to their size."""
TOLERANCE_ULPS = 4
"""Tolerance in half precision, in units of its last place."""
PREFIX_TOKENS = 24
"""Tokens of each row that are compared."""


@torch.no_grad()
def check_packing(host: Host, name: str, collate: PaddingCollator, rows: Sequence[TokenRow]) -> None:
    """Raise DeltatuneError if rows that `collate` packs into one sequence attend to each other.

    Compares logits of packed rows with those of the same rows alone: in evaluation mode, then with the adapter in
    training mode, where some methods compute something else; without dropout. Every module's mode is restored.
    """
    if not collate.packed:
        return
    if "labels" not in rows[0] or host.adapters[name].head is not None:
        raise DeltatuneError("packing is for tasks that use the language-model head; set packing=False")
    if host.prompts:
        raise DeltatuneError(
            f"adapter {name!r} has a soft prompt, which cannot come before each row of a packed sequence; set "
            "packing=False"
        )
    row_pair = _row_pair(rows)
    modes = [(module, module.training) for module in host.model.modules()]
    host.model.eval()
    try:
        worst = _difference(host, row_pair)
        for _, _, delta in host.adapters[name].entries():
            parts = (part for part in delta.modules() if isinstance(part, Delta))
            delta.train(not any(part.dropout for part in parts))
        worst = max(worst, _difference(host, row_pair))
    finally:
        for module, mode in modes:
            module.training = mode
    if worst > max(TOLERANCE, TOLERANCE_ULPS * torch.finfo(next(host.model.parameters()).dtype).eps):
        raise DeltatuneError(
            f"packed rows attend to each other: {type(host.model).__name__} with {host.adapters[name].method!r} does "
            "not separate packed sequences by position ids; set packing=False"
        )


def _row_pair(rows: Sequence[TokenRow]) -> list[TokenRow]:
    """The first tokens of the two longest rows; of one row twice if there is no other."""
    longest = sorted(rows, key=lambda row: -len(row["input_ids"]))[:2]
    lengths = PREFIX_TOKENS, PREFIX_TOKENS - 5
    return [_truncated(row, length) for row, length in zip((longest * 2)[:2], lengths, strict=True)]


def _truncated(row: TokenRow, length: int) -> TokenRow:
    ids = row["input_ids"][:length]
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [IGNORED, *ids[1:]]}


def _difference(host: Host, rows: list[TokenRow]) -> float:
    """The largest difference of logits between rows in one sequence and the same rows alone, relative to their size."""
    alone = torch.cat([_logits(host, row) for row in rows])
    packed = _logits(host, concatenate_rows(rows))
    if not len(alone):
        raise DeltatuneError("packing cannot be checked: no row has two tokens")
    return float((packed - alone).abs().max() / alone.abs().max())


def _logits(host: Host, row: TokenRow) -> torch.Tensor:
    batch = {name: torch.tensor([values], device=device_of(host)) for name, values in row.items()}
    labels = batch.pop("labels")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # methods that drop layers at random drop the same ones
        return token_logits(labelled_outputs(host, batch, labels)[0])
