"""Rewards of preference pairs: how much likelier an adapter makes each answer than its reference does.

The reference is the same base under another route, so there is no second model. It does not change, so it reads each
row once, before training and without gradients.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deltatune.core.errors import DeltatuneError, nearest
from deltatune.core.host import Host
from deltatune.tasks.collator import PaddingCollator
from deltatune.tasks.preferences.pair_collator import REFERENCE, answer_rows
from deltatune.tasks.preferences.preference import BASE, START, Prefer
from deltatune.tasks.task import Encoded, TokenRow
from deltatune.training.inference.likelihood import negative_log_likelihoods


def pair_log_probabilities(
    host: Host, task: Prefer, rows: Sequence[TokenRow], collate: PaddingCollator, bfloat16: bool
) -> tuple[Tensor, Tensor]:
    """Log-probabilities in nats and numbers of tokens of both answers of N pairs, (N, 2) each, under the route."""
    answers = Encoded(answer_rows(rows))
    plain = PaddingCollator(collate.fill, collate.left, collate.longest)
    with torch.inference_mode():
        likelihoods = np.stack(negative_log_likelihoods(host, task, answers, plain, bfloat16))  # (2N, 3)
    values = torch.from_numpy(likelihoods[:, :2]).float().view(2, len(rows), 2)
    return -values[..., 0].T, values[..., 1].T


def check_reference(host: Host, task: Prefer) -> None:
    """Raise DeltatuneError where the adapter that is the task's reference is not on the host."""
    if task.reference == BASE or task.reference in host.adapters:
        return
    loaded = f"host.load(FOLDER, name={task.reference!r})"
    of_start = " (the adapter that training started from)" if task.reference == START else ""
    raise DeltatuneError(
        f"rewards are measured against the adapter {task.reference!r}{of_start}, which is not on the host"
        f"{nearest(task.reference, host.adapters)}: load it, {loaded}, or set reference='base' for the model without "
        "adapters"
    )


def with_references(
    host: Host,
    task: Prefer,
    rows: Encoded,
    collate: PaddingCollator,
    bfloat16: bool,
    numbers: Sequence[int] | None = None,
) -> Encoded:
    """The rows with the log-probabilities of their answers under the reference; those that have them are unchanged.

    numbers: the rows that will be read; by default all. Raises DeltatuneError for a reference that is not on the host.
    """
    wanted = [i for i in (range(len(rows)) if numbers is None else numbers) if REFERENCE not in rows.rows[i]]
    if not wanted:
        return rows
    check_reference(host, task)
    with host.using(None if task.reference == BASE else task.reference, training=False):
        values, _ = pair_log_probabilities(host, task, [rows.rows[i] for i in wanted], collate, bfloat16)
    new = list(rows.rows)
    for i, pair in zip(wanted, values.tolist(), strict=True):
        new[i] = {**new[i], REFERENCE: pair}
    return Encoded(new, rows.truncated, rows.owners, rows.facts, rows.row_references, rows.row_hashes, rows.notes)


def pair_rewards(
    host: Host, task: Prefer, rows: Encoded, collate: PaddingCollator, bfloat16: bool
) -> list[NDArray[np.float64]]:
    """For each pair (3,): the rewards β · log π/π_ref of the chosen and the rejected answer, and its loss."""
    rows = with_references(host, task, rows, collate, bfloat16)
    policy, tokens = pair_log_probabilities(host, task, rows.rows, collate, bfloat16)
    reference = torch.tensor([row[REFERENCE] for row in rows.rows])  # (N, 2)
    losses = task.losses(policy, reference, tokens)
    values = torch.cat([task.beta * (policy - reference), losses[:, None]], 1)
    return list(values.double().numpy())
