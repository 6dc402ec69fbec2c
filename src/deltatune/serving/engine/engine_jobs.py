"""Jobs: requests that the worker has taken up, with what they have read and generated so far."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from deltatune.core.host import Host
from deltatune.serving.engine.prompt_reading import PromptReading
from deltatune.serving.engine.requests import (
    DoneEvent,
    DoneReason,
    Event,
    GenerateRequest,
    RowsRequest,
    Timings,
    TokenEvent,
)
from deltatune.serving.engine.sampling import Choice, RowSampler
from deltatune.serving.engine.ticket import Ticket
from deltatune.serving.resident import Resident
from deltatune.serving.serving_errors import CannotServe
from deltatune.tasks.task import Encoded, TokenRow

Route = Mapping[str, float]
"""Adapters of a row under their names on the host, with their weights."""


@dataclass(eq=False)
class EngineJob:
    """One request in the engine."""

    ticket: Ticket
    deadline: float | None
    """When it ends whatever has come of it, by `time.monotonic`."""
    pinned: list[Resident] = field(default_factory=list)
    """The adapters that it uses, which stay in memory as long."""
    route: Route = field(default_factory=dict)
    passed: int = 0
    """Later requests that were taken up while its adapters found no room."""
    alone: str | None = None
    """Its adapters and weights, if one of them cannot share passes with rows of others."""
    started: float | None = None
    first: float | None = None
    ended: bool = False

    @property
    def ending(self) -> Literal["cancelled", "timeout"] | None:
        """Why it is to end now, if it is."""
        if self.ticket.cancelled:
            return "cancelled"
        return "timeout" if self.deadline is not None and time.monotonic() >= self.deadline else None

    def begin(self) -> None:
        """Note that its first pass begins."""
        self.started = self.started or self._seconds()

    def report(self, event: Event) -> None:
        """Pass an event on."""
        self.first = self.first or self._seconds()
        self.ticket.put(event)

    def end(self, reason: DoneReason, error: Exception | None = None, stop_id: int | None = None) -> None:
        """Report the end."""
        if not self.ended:
            self.ended = True
            timings = Timings(self.started, self.first, self._seconds(), self.cached_tokens)
            self.ticket.put(DoneEvent(reason, timings, error, stop_id))

    @property
    def has_answer(self) -> bool:
        """Whether it has ended by itself."""
        done = self.ticket.done
        return done is not None and done.reason in ("stop", "length")

    @property
    def cached_tokens(self) -> int:
        """Tokens that the prompt cache had."""
        return 0

    def _seconds(self) -> float:
        return time.monotonic() - self.ticket.submitted


@dataclass(eq=False)
class GenerateJob(EngineJob):
    """A prompt to continue."""

    virtual: int = 0
    """Virtual tokens in front of the prompt."""
    prompt: PromptReading = field(default_factory=lambda: PromptReading([]))
    generated: list[int] = field(default_factory=list)
    from_cache: int = 0
    cache_age: int = 0
    """The age of the prompt cache when its prompt was begun."""
    long: bool = False
    """Whether it may become longer than the length from which on the model turns positions otherwise."""
    apart: bool = False
    """Whether it gets a batch of its own, because one with others has failed."""

    @cached_property
    def sampler(self) -> RowSampler:
        """How its tokens are chosen."""
        return RowSampler(self.request.sampling, self.request.prompt)

    @property
    def request(self) -> GenerateRequest:
        """The request."""
        assert isinstance(self.ticket.request, GenerateRequest)
        return self.ticket.request

    @property
    def cached_tokens(self) -> int:
        return self.from_cache

    @property
    def need(self) -> int:
        """Tokens whose keys and values it has at most, at its end."""
        return len(self.request.prompt) + self.virtual + self.request.sampling.max_tokens

    def take(self, choice: Choice, end_ids: frozenset[int]) -> None:
        """Note the next token, report it, and end where it is the last one."""
        own = self.request.sampling
        if choice.token in own.stop_ids or (choice.token in end_ids and not own.ignore_eos):
            self.end("stop", stop_id=choice.token)
            return
        self.generated.append(choice.token)
        self.sampler.count(choice.token)
        self.report(TokenEvent(*choice))
        if len(self.generated) >= own.max_tokens:
            self.end("length")


@dataclass(eq=False)
class RowsJob(EngineJob):
    """Rows to answer, whose answers come from one or several passes."""

    encoded: Encoded | None = None
    """The rows as the engine encoded them; None where the client did."""
    rows: list[TokenRow] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)
    turns: int = 0
    """How many of the request's encoded parts have been answered, for kind `task`."""
    plan: Any = None
    """How its rows are read: what they need of those they share a pass with."""

    @property
    def request(self) -> RowsRequest:
        """The request."""
        assert isinstance(self.ticket.request, RowsRequest)
        return self.ticket.request

    @property
    def open_rows(self) -> list[int]:
        """Numbers of the rows without an answer."""
        return [i for i, value in enumerate(self.values) if value is None]


@dataclass
class Counts:
    """What has happened since the engine started."""

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


def check_soft_weights(host: Host, job: EngineJob) -> None:
    """Raise CannotServe for a weight of an adapter with virtual tokens, which have none; 0 leaves it out of a text."""
    possible = (1.0,) if isinstance(job, RowsJob) else (0.0, 1.0)
    weights = job.ticket.request.adapters
    for resident in job.pinned:
        tokens, weight = host.adapters[resident.host_name].needs.virtual_tokens, weights[resident.name]
        if tokens and weight not in possible:
            raise CannotServe(
                f"{resident.name} puts {tokens} virtual tokens into the text, which stay there whatever their weight: "
                f"only weight 1 is possible, not {weight:g}"
            )
