"""The record of a request, and the log: one JSON object a line, without prompts unless asked for."""

from __future__ import annotations

import json
import logging
import secrets
import sys
import time
from datetime import UTC, datetime
from typing import Any, TextIO

from deltatune.serving.server.guard.api_keys import ApiKey
from deltatune.serving.server.guard.limits import Permit
from deltatune.serving.server.guard.refusals import Refusal, Scope

CALL = "deltatune.call"
"""Where a request's scope has its record."""
LONGEST = 300
"""Characters of a text of the client in the log."""


class Call:
    """One request, from its arrival to its end. Routes fill in what they know; the log and the metrics read it."""

    def __init__(self, scope: Scope) -> None:
        self.id = f"req_{secrets.token_hex(16)}"
        """Random: it tells nothing of other requests."""
        self.method: str = scope["method"]
        self.client: str = (scope.get("client") or ("",))[0]
        self.began = time.perf_counter()
        self.key: ApiKey | None = None
        self.permit: Permit | None = None
        self.model = ""
        """The model that was asked for; routes set it."""
        self.kind = ""
        """What kind of answer it gives: base, generate, classify, tag, span, embed, mixed; routes set it."""
        self.tokens_in = 0
        """Tokens read; routes set it."""
        self.tokens_out = 0
        """Tokens written; routes count them as they come."""
        self.first_token_seconds: float | None = None
        self.status = 0
        """Of the answer; 0 while there is none, 499 where the client hung up before."""
        self.error = ""
        """Code or name of what went wrong."""
        self.body: bytes | None = None
        """What was sent, kept only where the log shows it."""
        self._scope = scope
        scope[CALL] = self

    @property
    def seconds(self) -> float:
        """Since its arrival."""
        return time.perf_counter() - self.began

    @property
    def route(self) -> str:
        """The template of its path, such as /v1/models/{name}: there are few of them, whatever clients ask for."""
        return str(getattr(self._scope.get("route"), "path", "") or "unmatched")

    def token_(self, count: int = 1) -> None:
        """Tokens have been written; the first call is the moment of the first token."""
        if self.first_token_seconds is None:
            self.first_token_seconds = self.seconds
        self.tokens_out += count

    def reserve(self, tokens: int) -> None:
        """Count tokens that the request may take. Raises Refusal (429) where the key has not so many left."""
        if self.permit is not None:
            self.permit.reserve(tokens)

    def may_use(self, adapter: str) -> bool:
        """Whether its key may use an adapter; what it may not use does not exist for it."""
        return self.key is None or self.key.may_use(adapter)

    def require(self, right: str) -> None:
        """Raise Refusal (403) where its key has not the right "admin" or "metrics"; admin includes metrics."""
        if self.key is not None and not (self.key.admin or (right == "metrics" and self.key.metrics)):
            raise Refusal(
                403,
                f"You have insufficient permissions for this operation: it needs a key with {right!r}.",
                code="insufficient_permissions",
            )

    def close(self) -> None:
        """Give back the permit."""
        if self.permit is not None:
            self.permit.close(self.tokens_in + self.tokens_out)


def call_of(scope: Scope) -> Call:
    """The record of a request."""
    call: Call = scope[CALL]
    return call


class RequestLog:
    """Writes events as lines of JSON. A stream that takes no more is given up silently: requests go on."""

    def __init__(self, stream: TextIO | None = None, *, bodies: bool = False) -> None:
        """`stream`: stderr by default; `bodies`: requests are shown with what was sent, prompts and all."""
        self._stream, self.bodies = stream, bodies

    def request(self, call: Call) -> None:
        """A request has ended."""
        first = call.first_token_seconds
        content: dict[str, Any] = {
            "id": call.id,
            "key": call.key.name if call.key else None,
            "client": call.client,
            "method": call.method[:20],
            "route": call.route,
            "model": call.model[:LONGEST] or None,
            "status": call.status,
            "ms": round(call.seconds * 1000, 1),
            "first_token_ms": None if first is None else round(first * 1000, 1),
            "tokens_in": call.tokens_in,
            "tokens_out": call.tokens_out,
            "error": call.error or None,
        }
        if self.bodies and call.body is not None:
            content["body"] = call.body.decode("utf-8", "replace")
        self.event("request", **content)

    def event(self, event: str, **content: Any) -> None:
        """Anything else: what the server does, and what has gone wrong."""
        moment = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = json.dumps({"time": moment, "event": event, **content}, default=str)
        try:
            print(line, file=self._stream or sys.stderr, flush=True)
        except (OSError, ValueError):  # closed, or its reader has gone
            return


class LogLines(logging.Handler):
    """Brings the records of Python's logging into the log."""

    def __init__(self, log: RequestLog) -> None:
        super().__init__(logging.WARNING)
        self.log = log

    def emit(self, record: logging.LogRecord) -> None:
        """One record, with its traceback if it has one."""
        content = {"level": record.levelname.lower(), "logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            content["traceback"] = logging.Formatter().formatException(record.exc_info)
        self.log.event("message", **content)
