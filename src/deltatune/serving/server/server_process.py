"""The server's process: it listens, and on SIGTERM or Ctrl-C it drains.

While it drains it refuses new requests with 503 and `/ready` says so, running requests have `drain_seconds` to finish,
and then it ends with code 0. A second signal ends it at once.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from uvicorn import Config, Server

from deltatune.core.errors import DeltatuneError
from deltatune.serving.server.guard.connections import bounded
from deltatune.serving.server.guard.guards import Guard
from deltatune.serving.server.guard.request_log import LogLines

OTHER_FILES = 1024
"""Files that a process may have open beside connections: adapters, libraries, a store's index."""
LAST_SECONDS = 2
"""Seconds for connections to close once their requests have ended."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 is any free one. Raises DeltatuneError for what cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, protocol)  # asyncio turns Nagle's delays off where the protocol is named
    except OSError as error:
        raise DeltatuneError(f"--host {host}: {error.strerror or error}") from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise DeltatuneError(
            f"cannot listen on {host} port {port}: {error.strerror or error}; "
            "--port takes another one, and --port 0 any free one"
        ) from None
    return sock


def address_of(sock: socket.socket) -> str:
    """Where a client of this machine finds it."""
    host, port = sock.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve_until_signal(guard: Guard, sock: socket.socket, started: Callable[[], None] = lambda: None) -> None:
    """Serve until a signal has come and running requests have ended. `started` is called once it listens."""
    server = DrainingServer(guard, started)
    allow_connections(guard.guarding.bounds.connections)
    for name in ("uvicorn", "uvicorn.error", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [LogLines(guard.guarding.log)] if name != "uvicorn.error" else [], True
    logging.getLogger("uvicorn").propagate = logging.getLogger("asyncio").propagate = False
    server.run(sockets=[sock])


def allow_connections(count: int) -> None:
    """Let the process have so many connections open beside its files, as far as the system allows it."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


class DrainingServer(Server):
    """uvicorn's server, which drains before it stops."""

    def __init__(self, guard: Guard, started: Callable[[], None] = lambda: None) -> None:
        bounds = guard.guarding.bounds
        config = Config(
            guard,
            http=bounded(bounds),
            ws="none",
            log_config=None,
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=bounds.backlog,
            timeout_keep_alive=max(1, round(bounds.idle_seconds)),
            timeout_graceful_shutdown=LAST_SECONDS,
            h11_max_incomplete_event_size=bounds.header_bytes,
        )
        super().__init__(config)
        self.guard, self._started = guard, started
        self._deadline: float | None = None

    def drain(self) -> None:
        """Take no more requests, and stop once the running ones have ended or their time is over."""
        self._deadline = time.monotonic() + self.guard.guarding.bounds.drain_seconds
        self.guard.draining = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._started()

    async def on_tick(self, counter: int) -> bool:
        if self._deadline is not None and not self.should_exit:
            late = time.monotonic() > self._deadline
            if late:
                self.guard.cut()
            self.should_exit = late or not self.guard.running
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.guard.draining:
            os.write(2, b"stopped at once\n")  # print may be what the signal has interrupted
            os._exit(128 + sig)
        self.drain()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals, and do not raise them again at the end: a drained server has done its work."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        signals = (signal.SIGINT, signal.SIGTERM)
        before = {sig: signal.signal(sig, self.handle_exit) for sig in signals}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)
