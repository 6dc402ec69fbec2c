"""Several answers to one question: majority vote and mean."""

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
from deltatune.training.inference.batches import device_of, in_batches
from deltatune.training.inference.prediction import collate_on, encoded_rows, predict, room


def vote(logits: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Share of the votes for each class (N, C), from logits (N, C) of each member; equal shares go by probability.

    Lester et al. 2021, section 6, https://arxiv.org/abs/2104.08691
    """
    members = _checked(logits)
    classes = members.shape[-1]
    votes = np.eye(classes)[members.argmax(-1)].mean(0)
    chances = np.stack([softmax(each) for each in members]).mean(0)
    # Votes differ by at least one member's share; chances, below 1, decide between equal ones only.
    result: NDArray[np.float32] = (votes + chances / (2 * len(members))).astype(np.float32)
    return result


def mean(logits: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The mean of logits or of values (N, C)."""
    result: NDArray[np.float32] = _checked(logits).mean(0)
    return result


def _checked(logits: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    shapes = {each.shape for each in logits}
    if len(shapes) != 1:
        raise DeltatuneError(f"members of an ensemble must answer alike; their logits have shapes {sorted(shapes)}")
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
    """Return what several adapters of one task answer together (N, C): shares of votes, or their mean logits.

    Five prompts of a task cost one model in memory (Lester et al. 2021, section 6): each row is repeated for each
    adapter within a batch. Adapters that cannot share one run one after another. Route and modes are left as found.
    """
    if len(names) < 2:
        raise DeltatuneError(f"an ensemble takes two adapters or more, not {len(names)}")
    join = {"vote": vote, "mean": mean}[how]
    longest = max(names, key=lambda name: room(host, name))
    encoded = encoded_rows(host, longest, task, rows, tokenizer, labelled=False)
    if not all(host.adapters[name].mixes for name in names):
        return join([predict(host, name, task, encoded, tokenizer, batch_size, precision) for name in names])
    collate, bfloat16 = collate_on(host, longest, tokenizer, encoded), uses_bfloat16(host.model, precision)

    def together(batch: dict[str, Tensor]) -> Tensor:
        many = {key: tensor.repeat_interleave(len(names), 0) for key, tensor in batch.items()}
        host.use(list(names) * len(batch["input_ids"]))
        answers = torch.stack(logits(host, many, bfloat16))
        return answers.view(-1, len(names), answers.shape[-1])  # (B, N, C)

    with host.using(None, training=False), torch.inference_mode():
        found = in_batches(encoded, collate, max(1, batch_size // len(names)), device_of(host), together)
    return join(list(np.moveaxis(found.float().cpu().numpy(), 1, 0)))
