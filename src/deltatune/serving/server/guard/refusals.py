"""Refusals: answers that say in OpenAI's error body why a request is not served."""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Header = tuple[bytes, bytes]


class Refusal(Exception):
    """An answer of status 4xx or 5xx with OpenAI's error body."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
        close: bool = False,
    ) -> None:
        """`retry_after`: seconds after which the same request may be served; `close`: the connection ends too."""
        super().__init__(message)
        self.status, self.message, self.type, self.code, self.param = status, message, type, code, param
        self.retry_after, self.close = retry_after, close

    @property
    def body(self) -> bytes:
        """The JSON of the answer."""
        return error_body(self.message, self.type, self.code, self.param)

    @property
    def headers(self) -> list[Header]:
        """The headers of the answer."""
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(self.body)).encode())]
        if self.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        if self.retry_after is not None:
            headers.append((b"retry-after", str(max(1, math.ceil(self.retry_after))).encode()))
        if self.close:
            headers.append((b"connection", b"close"))
        return headers

    async def answer(self, send: Send, *, last: bool = True) -> None:
        """Send it. `last=False` leaves the response open, for a caller that still reads what the client sends."""
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": not last})


def error_body(message: str, type: str, code: str | None = None, param: str | None = None) -> bytes:
    """OpenAI's error object as JSON."""
    content = {"error": {"message": message, "type": type, "param": param, "code": code}}
    return json.dumps(content).encode()


def unavailable(message: str, retry_after: float = 1.0, close: bool = False) -> Refusal:
    """503: the server cannot take the request now."""
    return Refusal(503, message, type="server_error", code="service_unavailable", retry_after=retry_after, close=close)
