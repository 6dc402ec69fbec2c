"""Connections: uvicorn's HTTP protocol, with bounds on clients that send or read too slowly or come in numbers."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from deltatune.serving.server.guard.bounds import Bounds
from deltatune.serving.server.guard.refusals import error_body


class BoundedConnection(H11Protocol):
    """One connection. Who does not finish a request's headers in time, or leaves answers unread, is cut off."""

    bounds = Bounds()
    _header_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # so that pause_writing tells of any byte that is not taken
        if len(self.connections) > self.bounds.connections:
            self._say(503, "The server has too many connections at the moment.")
            transport.close()
            return
        self._await_headers()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._header_timer is None and self.conn.their_state is h11.IDLE:
            self._await_headers()
        super().data_received(data)
        if self._header_timer is not None and self.conn.their_state is not h11.IDLE:
            self._header_timer.cancel()
            self._header_timer = None

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self.bounds.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._header_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        self._header_timer = self._write_timer = None
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is answered in the form of every other error."""
        error = sys.exc_info()[1]
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        self._say(status, f"The headers are longer than {self.bounds.header_bytes:,} bytes." if status == 431 else msg)
        self.transport.close()

    def _await_headers(self) -> None:
        self._header_timer = self.loop.call_later(self.bounds.header_seconds, self._headers_late)

    def _headers_late(self) -> None:
        if not self.transport.is_closing():
            self._say(408, f"The headers did not arrive within {self.bounds.header_seconds:g} seconds.")
            self.transport.close()

    def _say(self, status: int, message: str) -> None:
        """Answer outside of any request."""
        type_ = "server_error" if status >= 500 else "invalid_request_error"
        body = error_body(message, type_)
        head = f"HTTP/1.1 {status} \r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)


def bounded(bounds: Bounds) -> Any:
    """The class of connections with these bounds, for uvicorn's `http=`."""
    return type("BoundedConnection", (BoundedConnection,), {"bounds": bounds})
