"""A ticket: one submitted request, its events as they come, and the way to cancel it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress

from deltatune.serving.engine.requests import DoneEvent, Event, Request, RequestResult, RowsEvent, TokenEvent


class Ticket:
    """The events of one request, for one reader: `for event in ticket`, `async for event in ticket` or `result()`.

    The worker of the engine writes, any other thread reads. The last event is always a DoneEvent.
    """

    def __init__(self, request: Request, wake: Callable[[], None]) -> None:
        self.request = request
        self.submitted = time.monotonic()
        self.cancelled = False
        """Whether the client wants no more of it."""
        self._wake = wake
        self._events: deque[Event] = deque()
        self._done: DoneEvent | None = None
        self._changed = threading.Condition()
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []

    # ---- for clients

    def cancel(self) -> None:
        """End the request; its room is free after the pass that runs. Its events end with a DoneEvent as ever."""
        self.cancelled = True
        self._wake()

    @property
    def done(self) -> DoneEvent | None:
        """The end of the request, None while it goes on."""
        return self._done

    def result(self, timeout: float | None = None) -> RequestResult:
        """Wait for the end and return all events that were not read before. A failed request raises its error.

        Raises TimeoutError after `timeout` seconds; the request goes on.
        """
        tokens, rows = [], None
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while self._done is None:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise TimeoutError(f"the request has not ended within {timeout:g} seconds")
                self._changed.wait(None if left is None else min(left, threading.TIMEOUT_MAX))
            for event in self._events:
                if isinstance(event, TokenEvent):
                    tokens.append(event)
                elif isinstance(event, RowsEvent):
                    rows = event
            self._events.clear()
            done = self._done
        if done.error is not None:
            raise done.error
        return RequestResult(tuple(tokens), rows, done)

    def __iter__(self) -> Iterator[Event]:
        while True:
            with self._changed:
                while not self._events:
                    if self._done is not None:  # its last event was read before
                        return
                    self._changed.wait()
                event = self._events.popleft()
            yield event
            if isinstance(event, DoneEvent):
                return

    async def __aiter__(self) -> AsyncIterator[Event]:
        loop = asyncio.get_running_loop()
        while True:
            event, arrival = None, None
            with self._changed:
                if self._events:
                    event = self._events.popleft()
                elif self._done is not None:
                    return
                else:
                    arrival = loop.create_future()
                    self._waiting.append((loop, arrival))
            if arrival is not None:
                await arrival
                continue
            assert event is not None
            yield event
            if isinstance(event, DoneEvent):
                return

    # ---- for the engine

    def put(self, event: Event) -> None:
        """Report an event; nothing comes after a DoneEvent."""
        with self._changed:
            if self._done is not None:
                return
            self._events.append(event)
            if isinstance(event, DoneEvent):
                self._done = event
            self._changed.notify_all()
            waiting, self._waiting = self._waiting, []
        for loop, arrival in waiting:
            with suppress(RuntimeError):  # the reader's loop is closed
                loop.call_soon_threadsafe(_arrived, arrival)


def _arrived(arrival: asyncio.Future[None]) -> None:
    if not arrival.done():
        arrival.set_result(None)
