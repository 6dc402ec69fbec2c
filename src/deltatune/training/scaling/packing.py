"""Whether packed rows stay apart on this model under this adapter: tried out, not believed."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from deltatune.core.errors import DeltatuneError
from deltatune.core.host import Host
from deltatune.tasks.collator import Collate, joined
from deltatune.tasks.task import IGNORED, TokenRow
from deltatune.training.inference.batches import device_of
from deltatune.training.task_model import logits_of, word_outputs

TOLERANCE = 1e-3
"""Largest difference of logits that counts as rounding, relative to their size."""
ROUNDINGS = 4
"""What half precision may be off by instead, in units of its last place."""
PIECE = 24
"""Tokens of each row that are tried."""


@torch.no_grad()
def check_packing(host: Host, name: str, collate: Collate, rows: Sequence[TokenRow]) -> None:
    """Raise DeltatuneError if rows that `collate` packs into one sequence see each other: models and methods may do so.

    Tried in eval mode, then with the adapter in training mode, since some methods do something else there; without
    dropout. Afterwards every module is in the mode it was in.
    """
    if not collate.packed:
        return
    if "labels" not in rows[0] or host.adapters[name].head is not None:
        raise DeltatuneError("packing is for tasks that are answered by the model's own words; set it off")
    if host.prompts:
        raise DeltatuneError(
            f"adapter {name!r} has a soft prompt, which rows packed into one sequence cannot each have in front; set "
            "packing off"
        )
    two = _two(rows)
    modes = [(module, module.training) for module in host.model.modules()]
    host.model.eval()
    try:
        worst = _difference(host, two)
        for _, _, delta in host.adapters[name].entries():
            delta.train(not getattr(delta, "dropout", 0.0))
        worst = max(worst, _difference(host, two))
    finally:
        for module, mode in modes:
            module.training = mode
    if worst > max(TOLERANCE, ROUNDINGS * torch.finfo(next(host.model.parameters()).dtype).eps):
        raise DeltatuneError(
            f"on this {type(host.model).__name__} with {host.adapters[name].method!r}, rows packed into one sequence "
            "see each other: not all of it keeps apart tokens whose positions start anew; set packing off"
        )


def _two(rows: Sequence[TokenRow]) -> list[TokenRow]:
    """The first tokens of two long rows; of one row twice where there is no other."""
    longest = sorted(rows, key=lambda row: -len(row["input_ids"]))[:2]
    return [_short(row["input_ids"][:size]) for row, size in zip((longest * 2)[:2], (PIECE, PIECE - 5), strict=True)]


def _short(ids: list[int]) -> TokenRow:
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [IGNORED, *ids[1:]]}


def _difference(host: Host, two: list[TokenRow]) -> float:
    """The largest difference of logits between two rows in one sequence and the same rows alone, to their size."""
    apart = torch.cat([_logits(host, row) for row in two])
    together = _logits(host, joined(two))
    if not len(apart):
        raise DeltatuneError("packing cannot be tried: no row has two tokens")
    return float((together - apart).abs().max() / apart.abs().max())


def _logits(host: Host, row: TokenRow) -> torch.Tensor:
    batch = {name: torch.tensor([values], device=device_of(host)) for name, values in row.items()}
    labels = batch.pop("labels")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # methods that leave out layers by chance leave out the same ones
        return logits_of(word_outputs(host, batch, labels)[0])
