"""A small application behind the server's guard, served in a thread: what the guard does shows without any model."""

import asyncio
import contextlib
import io
import json
import socket
import threading
import time

import httpx
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse

from deltatune.serving.server.guard.bounds import Bounds
from deltatune.serving.server.guard.guards import Guard, Guarding
from deltatune.serving.server.guard.metrics import Metrics
from deltatune.serving.server.guard.origins import Origins
from deltatune.serving.server.guard.refusals import Refusal
from deltatune.serving.server.guard.request_log import RequestLog, call_of
from deltatune.serving.server.page.page_files import add_page
from deltatune.serving.server.routes.error_answers import add_error_answers
from deltatune.serving.server.routes.status_routes import add_status_routes
from deltatune.serving.server.server_process import DrainingServer, listen


class Lines(io.StringIO):
    """A log that tests read."""

    def events(self, kind="request"):
        return [event for line in self.getvalue().splitlines() if (event := json.loads(line))["event"] == kind]


class GuardedServer:
    """The application, its guard, and what its routes have seen."""

    def __init__(self, bounds=None, keys=None, origins=None, bodies=False, admin=True, alive=lambda: True):
        self.lines, self.cancelled, self.seen = Lines(), [], []
        self.app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        self.metrics = Metrics(lambda: {"queued": 3.0, "evictions_total": 2.0})
        log = RequestLog(self.lines, bodies=bodies)
        origins = origins or Origins.of("127.0.0.1")
        self.guard = Guard(self.app, Guarding(bounds or Bounds(), keys, admin, origins, log), self.metrics)
        add_error_answers(self.app)
        add_status_routes(self.app, self.guard, alive)
        add_page(self.app)
        self._routes()

    def _routes(self):
        app = self.app

        @app.post("/v1/echo")
        async def echo(request: Request):
            call = call_of(request.scope)
            content = await request.json()
            self.seen.append(content)
            call.model, call.kind = str(content.get("model", "")), "generate"
            call.reserve(content.get("tokens", 0))
            call.tokens_in = content.get("used", content.get("tokens", 0))
            if not call.may_use(call.model or "base"):
                raise Refusal(404, f"The model {call.model!r} does not exist", code="model_not_found")
            return JSONResponse({"bytes": len(await request.body())})

        @app.post("/v1/slow")
        async def slow(request: Request):
            try:
                await asyncio.sleep((await request.json())["seconds"])
            except asyncio.CancelledError:
                self.cancelled.append("slow")
                raise
            return JSONResponse({"slept": True})

        @app.post("/v1/stream")
        async def stream(request: Request):
            content = await request.json()

            async def parts():
                try:
                    for _ in range(content["parts"]):
                        yield "x" * content.get("size", 10)
                        call_of(request.scope).token_()
                        await asyncio.sleep(content.get("pause", 0.01))
                except asyncio.CancelledError:
                    self.cancelled.append("stream")
                    raise

            return StreamingResponse(parts(), media_type="text/event-stream")

        @app.post("/v1/adapters/{name}/load")
        async def load(name: str, request: Request):
            call_of(request.scope).require("admin")
            return JSONResponse({"name": name})

        @app.get("/v1/boom")
        async def boom():
            raise RuntimeError("secret words")

    @contextlib.contextmanager
    def running(self):
        """Serve in a thread; yields its address."""
        ready, sock = threading.Event(), listen("127.0.0.1", 0)
        self.port = sock.getsockname()[1]
        self.server = DrainingServer(self.guard, ready.set)
        thread = threading.Thread(target=self.server.run, kwargs={"sockets": [sock]})
        thread.start()
        try:
            assert ready.wait(10)
            yield f"http://127.0.0.1:{self.port}"
        finally:
            self.server.should_exit = True
            thread.join(10)
            assert not thread.is_alive()

    def connect(self):
        """A bare connection."""
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        sock.settimeout(10)
        return sock


def client(address, key=None, **more):
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.Client(base_url=address, headers=headers, timeout=10, trust_env=False, verify=False, **more)


def read_all(sock):
    """Whatever comes until the other side closes."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := sock.recv(65536):
            parts.append(part)
    return b"".join(parts)


def wait_for(condition, seconds=5.0):
    """Wait until a condition holds; whether it does."""
    until = time.monotonic() + seconds
    while not (held := condition()) and time.monotonic() < until:
        time.sleep(0.01)
    return held
