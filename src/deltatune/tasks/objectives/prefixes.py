"""Language modelling of a text: of all of it, or of what follows a prefix.

Prefix LM: T5, Raffel et al. 2019, https://arxiv.org/abs/1910.10683; as the last 100,000 steps of T5 before prompts are
tuned ("LM adaptation"): Lester et al. 2021, https://arxiv.org/abs/2104.08691
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from deltatune.core.errors import DeltatuneError
from deltatune.tasks.objectives.drawing import integer
from deltatune.tasks.task import IGNORED


def split_prefix(ids: Sequence[int], generator: torch.Generator) -> tuple[list[int], list[int]]:
    """A text as a prefix and its continuation, both of one token or more, cut at a uniform place."""
    if len(ids) < 2:
        raise DeltatuneError(f"a prefix and its continuation need 2 tokens or more, not {len(ids)}")
    at = integer(1, len(ids) - 1, generator)
    return list(ids[:at]), list(ids[at:])


def causal_labels(ids: Sequence[int], starts: Sequence[int] = ()) -> list[int]:
    """Labels (T,) of a causal language model: the tokens themselves; models compare place t with place t - 1.

    `starts` are places where another document begins: its first token cannot be told from the document before.
    """
    labels = list(ids)
    for place in starts:
        labels[place] = IGNORED
    return labels


def prefix_labels(prefix: Sequence[int], rest: Sequence[int]) -> tuple[list[int], list[int]]:
    """Inputs and labels (T,) of a decoder that is asked for the continuation alone."""
    return [*prefix, *rest], [IGNORED] * len(prefix) + list(rest)


def pieces(ids: Sequence[int], size: int) -> list[list[int]]:
    """A long document in pieces of `size` tokens; the last may be shorter. Documents never share a piece."""
    if size < 1:
        raise DeltatuneError(f"pieces of {size} tokens cannot be made")
    return [list(ids[start : start + size]) for start in range(0, len(ids), size)]
