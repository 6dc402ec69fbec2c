"""Bodies of requests: read whole before anything looks at them, bounded in bytes and in time while they arrive."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable, Sequence

from deltatune.serving.server.guard.bounds import Bounds
from deltatune.serving.server.guard.refusals import Header, Receive, Refusal, unavailable


class ClientGone(Exception):
    """The client has hung up."""


class BodyReader:
    """Reads bodies; knows how many bytes of them are held."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds, self.held = bounds, 0

    async def read(self, receive: Receive, headers: Sequence[Header]) -> bytearray:
        """The body, which the caller gives back with `release`. A Content-Length is believed only where it is too long.

        Raises Refusal for a body that is too long (413), too slow (408), one too many (503), or whose end a proxy may
        see elsewhere (400), and ClientGone.
        """
        names = [name for name, _ in headers]
        if b"content-length" in names and b"transfer-encoding" in names:  # RFC 9112, section 6.3: request smuggling
            text = "Content-Length and Transfer-Encoding exclude each other."
            raise Refusal(400, text, code="invalid_headers", close=True)
        stated = next((value for name, value in headers if name == b"content-length"), b"0")
        if stated.isdigit() and int(stated) > self.bounds.body_bytes:
            raise self._too_long()
        body = bytearray()
        try:
            async with asyncio.timeout(self.bounds.body_seconds):
                await self._fill(body, receive)
        except BaseException as error:
            self.release(body)
            if isinstance(error, TimeoutError):
                raise Refusal(
                    408,
                    f"The body did not arrive within {self.bounds.body_seconds:g} seconds.",
                    code="request_timeout",
                    close=True,
                ) from None
            raise
        return body

    async def _fill(self, body: bytearray, receive: Receive) -> None:
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            part, more = message.get("body", b""), message.get("more_body", False)
            body += part
            self.held += len(part)
            if len(body) > self.bounds.body_bytes:
                raise self._too_long()
            if self.held > self.bounds.all_bodies_bytes:
                raise unavailable("The server holds too many request bodies at the moment.", close=True)

    def release(self, body: bytearray) -> None:
        """The body is no longer held."""
        self.held -= len(body)
        body.clear()

    async def drain(self, receive: Receive) -> None:
        """Read on and throw away, for a while: who closes while data arrive takes from the client what was answered."""
        until, ended = time.monotonic() + self.bounds.linger_seconds, False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.bounds.linger_seconds):
                while not ended and time.monotonic() < until:
                    message = await receive()
                    ended = message["type"] == "http.disconnect" or not message.get("more_body", False)

    def _too_long(self) -> Refusal:
        return Refusal(
            413,
            f"The request's body is longer than {self.bounds.body_bytes:,} bytes.",
            code="request_too_large",
            close=True,
        )


def has_body(headers: Iterable[Header]) -> bool:
    """Whether a body follows the headers."""
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value.strip() != b"0") for name, value in headers
    )
