"""Cost of finding a prompt, or of training through one: what the model reads, counted while it runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any

from torch import Tensor, nn

from deltatune.core.host import Host


@dataclass
class PromptCost:
    """What was spent between two moments."""

    passes: int = 0
    """Rows that went through the model, forward; one of training counts once, though it goes backward too."""
    tokens: int = 0
    """Tokens of those rows, without padding; of a decoder behind an encoder the encoder's are counted."""
    seconds: float = 0.0
    """Time by the clock."""
    calls: int = 0
    """Requests to a server."""

    def add(self, other: PromptCost) -> None:
        """Count what was spent elsewhere too."""
        self.passes += other.passes
        self.tokens += other.tokens
        self.seconds += other.seconds
        self.calls += other.calls

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"passes": self.passes, "tokens": self.tokens, "seconds": self.seconds, "calls": self.calls}


@contextmanager
def counted(host: Host) -> Iterator[PromptCost]:
    """Within this context every forward pass of the host's model is counted."""
    cost, start = PromptCost(), time.perf_counter()
    masked: Tensor | int = 0  # number of tokens, on the device of the model: nothing waits for it
    names = tuple(signature(host.model.forward).parameters)

    def count(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal masked
        batch = {**dict(zip(names, args, strict=False)), **kwargs}
        ids, mask = batch.get("input_ids"), batch.get("attention_mask")
        if not isinstance(ids, Tensor):
            return
        cost.passes += len(ids)
        if isinstance(mask, Tensor) and mask.ndim == 2 and len(mask) == len(ids) and mask.shape[1] >= ids.shape[1]:
            masked = masked + mask[:, -ids.shape[1] :].sum()  # what comes before is cached
        else:
            cost.tokens += ids.numel()

    handle = host.model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield cost
    finally:
        handle.remove()
        cost.tokens += int(masked)
        cost.seconds = time.perf_counter() - start
