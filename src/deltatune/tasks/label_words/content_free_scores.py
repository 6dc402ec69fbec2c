"""What a prompt prefers whatever the text says: log p_cf of contextual calibration, from texts without content."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

NEVER = float(np.log(np.finfo(np.float32).tiny))
"""Least log p_cf: a class that no text without content gets."""


def log_content_free(scores: NDArray[Any], scoring: str) -> NDArray[Any]:
    """log p_cf (..., C), normalised, from the scores (K, ..., C) of K texts without content.

    Zhao et al. 2021, https://arxiv.org/abs/2102.09690: the mean of the texts' probabilities. As in its code these are
    the words' own probabilities, so that a text counts for more in which the words are likelier; logits are none, and
    are normalised in each text.
    """
    values = scores.astype(np.float64)
    if scoring == "logit":
        values = values - np.logaddexp.reduce(values, axis=-1, keepdims=True)
    mean = np.logaddexp.reduce(values, axis=0)
    result: NDArray[Any] = np.maximum(mean - np.logaddexp.reduce(mean, axis=-1, keepdims=True), NEVER)
    return result
