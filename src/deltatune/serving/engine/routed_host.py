"""The host as the engine's passes use it: the route of the next pass, and its precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from deltatune.core.errors import DeltatuneError, OutOfMemory, is_out_of_memory
from deltatune.core.host import Host
from deltatune.models.hardware import uses_bfloat16
from deltatune.training.inference.batches import device_of

T = TypeVar("T")


class RoutedHost:
    """A host whose route changes only where the rows of a pass are others than before."""

    def __init__(self, host: Host, precision: str = "auto") -> None:
        self.host = host
        self.bfloat16 = uses_bfloat16(host.model, precision)
        self.device = device_of(host)
        self.rope_switch = rope_switch(host.model)
        self.passes = 0
        self.rows = 0
        self._routes: tuple[tuple[tuple[str, float], ...], ...] | None = None

    def forget_route(self) -> None:
        """Adapters have come or gone: the next pass sets its route anew."""
        self._routes = None

    @contextmanager
    def routed(self, routes: Sequence[Mapping[str, float]]) -> Iterator[None]:
        """A pass for rows with these adapters."""
        key = tuple(tuple(sorted(route.items())) for route in routes)
        if key != self._routes:
            self._routes = None
            same = len(set(key)) == 1
            self.host.use(dict(key[0]) if same else [dict(row) for row in key])
            self._routes = key
        self.passes += 1
        self.rows += len(routes)
        yield


def rope_switch(model: nn.Module) -> int | None:
    """The length from which on a model turns positions otherwise (LongRoPE, as in Phi-3); None where it never does.

    The longest row of a pass decides that for all, so rows of both kinds share none: Ding et al. 2024,
    https://arxiv.org/abs/2402.13753
    """
    config = model.config.get_text_config()  # type: ignore[operator,union-attr]
    given = getattr(config, "rope_parameters", None) or {}
    kinds = [given, *(each for each in given.values() if isinstance(each, dict))]  # one, or one for each kind of layer
    lengths = [each.get("original_max_position_embeddings") for each in kinds if each.get("rope_type") == "longrope"]
    return min((length for length in lengths if length is not None), default=None)


def attempt(work: Callable[[], T]) -> T | Exception:
    """The result of a pass, or the error that ended it, in words that a client may read."""
    try:
        return work()
    except DeltatuneError as error:
        return error
    except Exception as error:
        if is_out_of_memory(error):
            return OutOfMemory("the memory was used up by this request; send a shorter one, or fewer rows")
        return error


def logits_by_row(
    together: Callable[[], Tensor], alone: Sequence[Callable[[], Tensor]]
) -> tuple[Tensor | None, dict[int, Exception]]:
    """Logits (B, V) of a pass; where it fails those of a pass for each of its rows alone, which finds the guilty ones.

    Returns the errors of rows too, by their number; their logits mean nothing. None if every row has failed.
    """
    logits = attempt(together)
    if not isinstance(logits, Exception):
        return logits, {}
    each = [logits] if len(alone) <= 1 else [attempt(work) for work in alone]
    errors = {i: result for i, result in enumerate(each) if isinstance(result, Exception)}
    like = next((result for result in each if isinstance(result, Tensor)), None)
    if like is None:
        return None, errors
    return torch.cat([result if isinstance(result, Tensor) else torch.zeros_like(like) for result in each]), errors
