"""The guard: what stands between the network and the routes.

Every request passes here first: its host and origin, its key, the key's limits, its body's size and pace. Then the
routes answer, watched: a client that hangs up, or a request that takes too long, ends them. Whatever happens is
answered in OpenAI's form, logged once and counted once.

Routes find the record of their request with `call_of(request.scope)`: they ask it what the key may use (`may_use`,
`require`), count the tokens that they may take before they begin (`reserve`) and those that came (`tokens_in`,
`token_`), and name the model and the kind of answer. A route that is cancelled must cancel what it has begun.
"""

from __future__ import annotations

import asyncio
import contextlib
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

from starlette.routing import Match

from deltatune.serving.server.guard.api_keys import KeyFile, anonymous
from deltatune.serving.server.guard.bounds import Bounds
from deltatune.serving.server.guard.limits import Limiter
from deltatune.serving.server.guard.metrics import Metrics
from deltatune.serving.server.guard.origins import Origins
from deltatune.serving.server.guard.refusals import Message, Receive, Refusal, Scope, Send, unavailable
from deltatune.serving.server.guard.request_body import BodyReader, ClientGone, has_body
from deltatune.serving.server.guard.request_log import Call, RequestLog

App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = ("/", "/health", "/ready")
"""Paths that need no key, besides the page's files."""
PAGE_FILES = "/page/"
"""Where the page's files are."""
ALWAYS = ("/health", "/ready", "/metrics")
"""Paths that are served to the end while the server drains."""
JSON_POLICY = b"default-src 'none'; frame-ancestors 'none'"
SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
]
GRACE = 5.0
"""Seconds after a request's bound that the routes have to say so themselves."""


@dataclass(frozen=True)
class Guarding:
    """What the guard goes by."""

    bounds: Bounds = field(default_factory=Bounds)
    """Sizes and times."""
    keys: KeyFile | None = None
    """Who may call; None for anyone."""
    anyone_is_admin: bool = True
    """Without keys: whether callers may load and unload adapters."""
    origins: Origins = field(default_factory=Origins)
    """The host names it answers to, and the web pages that may call it."""
    log: RequestLog = field(default_factory=RequestLog)
    """Where requests are logged."""


class Guard:
    """The ASGI application that is served: what is inside answers, guarded. It lives in the server's event loop."""

    def __init__(self, app: App, guarding: Guarding, metrics: Metrics) -> None:
        self.app, self.guarding, self.metrics = app, guarding, metrics
        self.bodies = BodyReader(guarding.bounds)
        self.limiter = Limiter()
        self.anonymous = anonymous(guarding.anyone_is_admin)
        self.draining = False
        """Whether new requests are refused because the server is about to stop."""
        self.running: set[Call] = set()
        """Requests that are being answered, those of `ALWAYS` aside."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._request(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self.app(scope, receive, send)

    def cut(self) -> None:
        """End all running requests: those that have not begun to answer get 503, the others are cut off."""
        for task in self._tasks:
            task.cancel()

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        call, bounds = Call(scope), self.guarding.bounds
        answer = _Answer(call, send, self.guarding.origins.answer_headers(scope))
        counted = scope["path"] not in ALWAYS
        if counted:
            self.running.add(call)
        self.metrics.began()
        try:
            if _header_bytes(scope) > bounds.header_bytes:
                raise Refusal(431, f"The headers are longer than {bounds.header_bytes:,} bytes.", close=True)
            self.guarding.origins.check(scope)
            if self.guarding.origins.is_preflight(scope) and not has_body(scope["headers"]):
                await answer.preflight()
                return
            if self.draining and counted:
                raise unavailable("The server is about to stop and takes no more requests.", 5.0, close=True)
            try:
                self._admit(call, scope)
            except Refusal as refusal:  # a body that nobody reads would keep the connection as long as it likes
                refusal.close = has_body(scope["headers"])
                raise
            body = await self.bodies.read(receive, scope["headers"])
            try:
                await self._watched(partial(self.app, scope), receive, answer, body, call)
            finally:
                self.bodies.release(body)
        except ClientGone:
            call.status, call.error = call.status if answer.complete else 499, call.error or "client_gone"
        except Refusal as refusal:
            self._find_route(scope)
            await self._refuse(refusal, call, answer, receive)
        except asyncio.CancelledError:
            call.error = call.error or "cancelled"
            raise
        except Exception as error:
            call.error = type(error).__name__
            self.guarding.log.event("error", id=call.id, route=call.route, traceback=traceback.format_exc())
            failed = Refusal(
                500, f"The server had an error while it answered request {call.id}.", type="server_error", close=True
            )
            await self._refuse(failed, call, answer, receive)
        finally:
            self.running.discard(call)
            call.close()
            self.metrics.ended(call)
            self.guarding.log.request(call)

    def _admit(self, call: Call, scope: Scope) -> None:
        """Find the key and count the request."""
        keys = self.guarding.keys
        if scope["path"] in OPEN or scope["path"].startswith(PAGE_FILES):
            return
        if keys is None:
            call.key = self.anonymous
            return
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        scheme, _, secret = given[0].strip().partition(b" ") if len(given) == 1 else (b"", b"", b"")
        if scheme.lower() != b"bearer" or not secret.strip():
            raise Refusal(401, "You didn't provide an API key: send the header Authorization: Bearer YOUR_KEY.")
        call.key = keys.identify(secret.strip())
        if call.key is None:
            raise Refusal(401, "Incorrect API key provided.", code="invalid_api_key")
        call.permit = self.limiter.admit(call.key)

    async def _watched(
        self,
        app: Callable[[Receive, Send], Awaitable[None]],
        receive: Receive,
        answer: _Answer,
        body: bytearray,
        call: Call,
    ) -> None:
        """Let the routes answer, until they have, the client has hung up, or the time is over."""
        content, gone, given = bytes(body), asyncio.Event(), False
        if self.guarding.log.bodies:
            call.body = content

        async def replay() -> Message:
            nonlocal given
            if not given:
                given = True
                return {"type": "http.request", "body": content, "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def hang_up() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            gone.set()

        async def route() -> None:
            await app(replay, answer)

        routes, watch = asyncio.create_task(route()), asyncio.create_task(hang_up())
        self._tasks.add(routes)
        try:
            seconds = self.guarding.bounds.request_seconds + GRACE
            done, _ = await asyncio.wait((routes, watch), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if answer.complete:
                await asyncio.wait((routes,), timeout=GRACE)
            else:
                await _ended(routes)
            if routes.cancelled():
                if answer.complete:
                    return
                if watch in done:
                    raise ClientGone
                if self.draining:
                    raise unavailable("The server has stopped.", 5.0, close=True)
                text = f"The request took longer than {self.guarding.bounds.request_seconds:g} seconds."
                raise Refusal(504, text, type="server_error", code="timeout", close=True)
            routes.result()
        finally:
            self._tasks.discard(routes)
            await _ended(routes)
            await _ended(watch)

    def _find_route(self, scope: Scope) -> None:
        """Tell the log and the metrics which route a request was for that was refused before the routes saw it."""
        for route in getattr(self.app, "routes", ()) if "route" not in scope else ():
            if route.matches(scope)[0] is Match.FULL:
                scope["route"] = route
                return

    async def _refuse(self, refusal: Refusal, call: Call, answer: _Answer, receive: Receive) -> None:
        """Answer with an error; where the answer has begun already, it is cut off."""
        call.error = call.error or refusal.code or str(refusal.status)
        if answer.begun:
            return
        with contextlib.suppress(Exception):
            if refusal.close:
                await refusal.answer(answer, last=False)
                await self.bodies.drain(receive)
                await answer({"type": "http.response.body", "body": b"", "more_body": False})
            else:
                await refusal.answer(answer)


class _Answer:
    """Sends the answer with the headers that every answer has, and notes what became of it."""

    def __init__(self, call: Call, send: Send, extra: list[tuple[bytes, bytes]]) -> None:
        self._call, self._send, self._extra = call, send, extra
        self.begun = self.complete = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            self._call.status = message["status"]
            message = {**message, "headers": self._headers(list(message.get("headers", [])))}
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            self.complete = True
            self._call.close()  # before it is sent: the client may ask again as soon as it has it
        await self._send(message)

    async def preflight(self) -> None:
        """The answer to a browser that asks whether a page of another origin may call."""
        await self({"type": "http.response.start", "status": 204, "headers": []})
        await self({"type": "http.response.body", "body": b""})

    def _headers(self, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        permit, there = self._call.permit, {name for name, _ in headers}
        more = [(b"x-request-id", self._call.id.encode()), *SECURITY_HEADERS, *self._extra]
        more += permit.headers if permit is not None else []
        more += [(b"content-security-policy", JSON_POLICY), (b"cache-control", b"no-store")]
        if any(name == b"content-type" and value.startswith(b"text/event-stream") for name, value in headers):
            more.append((b"x-accel-buffering", b"no"))  # nginx passes each event on as it comes
        return headers + [(name, value) for name, value in more if name not in there]


async def _ended(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait for it; what it raises no longer matters."""
    if not task.done():
        task.cancel()
        await asyncio.wait((task,))
    elif not task.cancelled():
        task.exception()


def _header_bytes(scope: Scope) -> int:
    sizes = (len(name) + len(value) for name, value in scope["headers"])
    return len(scope.get("raw_path", b"")) + len(scope["query_string"]) + sum(sizes)
