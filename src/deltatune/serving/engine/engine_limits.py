"""Limits of the engine: how much runs, waits and stays in memory at once."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from deltatune.core.errors import raise_all
from deltatune.training.scaling.feature_cache import free_memory


@dataclass(frozen=True)
class EngineLimits:
    """What the engine holds at once; 0 in a field of bytes takes a share of the machine's memory."""

    rows: int = 64
    """Rows that generate at once."""
    pass_tokens: int = 2048
    """Tokens of prompts, or of rows to classify, that one pass reads; longer prompts are read in pieces, so that rows
    which generate are not held up. A row that must be read at once may have more."""
    queue: int = 512
    """Requests that wait; more are refused with QueueFull."""
    cache_bytes: int = 0
    """Bytes of the keys and values of running rows; 0: a quarter of the free memory."""
    prompt_cache_bytes: int = 0
    """Bytes of the keys and values of prompts that are kept for later ones; 0: an eighth of the free memory."""
    prompt_cache: bool = True
    """Whether keys and values of prompts are kept."""
    request_rows: int = 4096
    """Rows of one RowsRequest."""

    def __post_init__(self) -> None:
        least = {"rows": 1, "pass_tokens": 16, "queue": 1, "cache_bytes": 0, "prompt_cache_bytes": 0, "request_rows": 1}
        raise_all([
            f"{name} must be a whole number of at least {most}, not {value!r}"
            for name, most in least.items()
            if isinstance(value := getattr(self, name), bool) or not isinstance(value, int) or value < most
        ])  # fmt: skip

    def of_machine(self, device: torch.device) -> EngineLimits:
        """The same limits, with shares of a device's free memory where they are 0."""
        free = free_memory(device)
        return replace(
            self,
            cache_bytes=self.cache_bytes or free // 4,
            prompt_cache_bytes=self.prompt_cache_bytes or free // 8,
        )
