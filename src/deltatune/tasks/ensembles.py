"""Several answers to one question: majority vote and mean."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from deltatune.core.errors import DeltatuneError
from deltatune.tasks.classify import softmax


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
