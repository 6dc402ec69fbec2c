"""Ensembles of adapters: majority vote, or mean of the logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError
from deltatune.core.host import Host
from deltatune.models.hardware import uses_bfloat16
from deltatune.tasks.classification import softmax
from deltatune.tasks.task import Encoded, Row, Task
from deltatune.training.forward import logits
from deltatune.training.inference.batches import device_of, map_batches
from deltatune.training.inference.prediction import adapter_collator, ensure_encoded, positions_taken, predict


def vote(logits: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Share of the votes for each class (N, C), from logits (N, C) of each member; ties go by probability.

    Lester et al. 2021, section 6, https://arxiv.org/abs/2104.08691
    """
    members = _checked(logits)
    classes = members.shape[-1]
    votes = np.eye(classes)[members.argmax(-1)].mean(0)
    probabilities = np.stack([softmax(member) for member in members]).mean(0)
    # Shares differ by at least 1 / members; probabilities, below 1, decide between equal ones only.
    result: NDArray[np.float32] = (votes + probabilities / (2 * len(members))).astype(np.float32)
    return result


def mean(logits: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The mean of logits or of values (N, C)."""
    result: NDArray[np.float32] = _checked(logits).mean(0)
    return result


def _checked(logits: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    shapes = {member.shape for member in logits}
    if len(shapes) != 1:
        raise DeltatuneError(f"members of an ensemble must have logits of one shape, not {sorted(shapes)}")
    return np.stack(list(logits))


def ensemble(
    host: Host,
    names: Sequence[str],
    task: Task,
    rows: Sequence[Row] | Encoded,
    tokenizer: PreTrainedTokenizerBase,
    how: Literal["vote", "mean"] = "vote",
    batch_size: int = 64,
    precision: str = "auto",
) -> NDArray[Any]:
    """Return the combined answers (N, C) of several adapters of one task: shares of votes, or mean logits.

    Five prompts of a task cost one model in memory (Lester et al. 2021, section 6): each row is repeated for each
    adapter within a batch. Adapters that cannot share a batch run one after another. Route and modes are restored.
    """
    if len(names) < 2:
        raise DeltatuneError(f"an ensemble takes two adapters or more, not {len(names)}")
    combine = {"vote": vote, "mean": mean}[how]
    longest = max(names, key=lambda name: positions_taken(host, name))
    encoded = ensure_encoded(host, longest, task, rows, tokenizer, labelled=False)
    if not all(host.adapters[name].mixes for name in names):
        return combine([predict(host, name, task, encoded, tokenizer, batch_size, precision) for name in names])
    collate, bfloat16 = adapter_collator(host, longest, tokenizer, encoded), uses_bfloat16(host.model, precision)

    def member_logits(batch: dict[str, Tensor]) -> Tensor:
        repeated = {key: tensor.repeat_interleave(len(names), 0) for key, tensor in batch.items()}
        host.use(list(names) * len(batch["input_ids"]))
        rows = torch.stack(logits(host, repeated, bfloat16))
        return rows.view(-1, len(names), rows.shape[-1])  # (B, N, C)

    with host.using(None, training=False), torch.inference_mode():
        all_logits = map_batches(encoded, collate, max(1, batch_size // len(names)), device_of(host), member_logits)
    return combine(list(np.moveaxis(all_logits.float().cpu().numpy(), 1, 0)))
