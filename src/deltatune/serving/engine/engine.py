"""The engine: requests of many clients on one host, in passes that rows of different adapters share."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

from deltatune.core.host import Host
from deltatune.serving.engine.engine_limits import EngineLimits
from deltatune.serving.engine.requests import Request
from deltatune.serving.engine.ticket import Ticket
from deltatune.serving.residency import Residency

T = TypeVar("T")


@dataclass(frozen=True)
class EngineStatistics:
    """Counts of an engine since it started, and what is in it at present."""

    queued: int = 0
    """Requests that wait."""
    running: int = 0
    """Requests that are being answered."""
    resident: tuple[str, ...] = ()
    """Adapters in memory, the last used last."""
    requests: int = 0
    """Requests that were accepted."""
    refused: int = 0
    """Requests that found the queue full."""
    failed: int = 0
    """Requests that ended with an error."""
    cancelled: int = 0
    timed_out: int = 0
    tokens_in: int = 0
    """Tokens of prompts and rows that were read."""
    tokens_out: int = 0
    """Tokens that were generated."""
    cached_tokens: int = 0
    """Tokens of prompts that came from the prompt cache."""
    prompt_cache_hits: int = 0
    """Prompts of which some tokens came from the prompt cache."""
    prompt_cache_bytes: int = 0
    passes: int = 0
    """Passes of the base."""
    rows_read: int = 0
    """Rows of all passes."""
    loads: int = 0
    """Adapters that were loaded."""
    evictions: int = 0
    """Adapters that made room for others."""
    loading_seconds: float = 0.0
    """Seconds from the wish for an adapter until it was in memory, added up."""
    attaching_seconds: float = 0.0
    """Seconds of loading in which nothing else ran."""


class Engine:
    """One worker thread owns the host: every operation on it happens there.

    Rows that generate share decoding passes, whatever adapters and weights they have; they join and leave at any step.
    """

    def __init__(
        self,
        host: Host,
        tokenizer: PreTrainedTokenizerBase,
        residency: Residency | None = None,
        limits: EngineLimits | None = None,
        *,
        precision: str = "auto",
    ) -> None:
        """Without a residency, the adapters that are attached are served.

        precision: "auto", "float32" or "bfloat16", as in `deltatune.training.predict`.
        """
        raise NotImplementedError

    def submit(self, request: Request) -> Ticket:
        """Queue a request, from any thread. Raises QueueFull, UnknownAdapter, RequestTooLong, CannotServe,
        EngineStopped, and DeltatuneError for wrong values."""
        raise NotImplementedError

    def call(self, work: Callable[[Host], T]) -> Future[T]:
        """Run something on the host, in the worker between two passes; from any thread."""
        raise NotImplementedError

    @property
    def alive(self) -> bool:
        """Whether the worker runs."""
        raise NotImplementedError

    @property
    def draining(self) -> bool:
        """Whether new requests are refused."""
        raise NotImplementedError

    def statistics(self) -> EngineStatistics:
        """Counts, from any thread."""
        raise NotImplementedError

    def drain(self, timeout: float | None = None) -> bool:
        """Refuse new requests and wait for those that there are. Returns whether all have ended in time."""
        raise NotImplementedError

    def close(self) -> None:
        """End every request that is left, as cancelled, and the worker. Safe to call again."""
        raise NotImplementedError
