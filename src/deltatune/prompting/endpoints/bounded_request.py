"""One request to a server, bounded as a whole in time and size: an answer that drips byte by byte ends at the timeout.

A timeout of Python's sockets bounds each read alone, so that an answer in small pieces may take any time.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import socket
import time
import urllib.error
import urllib.request
from threading import Timer
from typing import Any

MAX_ERROR = 64 << 10
"""Bytes of an error's text that are read."""


class TooLarge(Exception):
    """An answer that is not read: it is too large, or in an encoding that was not asked for."""


def post(request: urllib.request.Request, timeout: float, max_bytes: int) -> tuple[bytes, str]:
    """Send a request and return the content of the answer and its type.

    timeout: seconds from the beginning to the last byte; max_bytes: bytes of the answer. No redirect is followed, so
    that a key reaches no other server. Raises TimeoutError, TooLarge, and the errors of urllib and http.client.
    """
    sockets: list[socket.socket] = []
    end = time.monotonic() + timeout
    opener = urllib.request.build_opener(_NoRedirect, _HTTP(sockets), _HTTPS(sockets))
    watch = Timer(timeout, _shut, [sockets])
    watch.daemon = True
    watch.start()
    try:
        content, kind = _answer(opener, request, timeout, max_bytes)
    except urllib.error.HTTPError as error:
        if time.monotonic() >= end:
            raise TimeoutError("timed out") from None
        raise error
    except (OSError, ValueError, AttributeError, http.client.HTTPException):  # also what a shut socket raises
        if time.monotonic() >= end:
            raise TimeoutError("timed out") from None
        raise
    finally:
        watch.cancel()
    if time.monotonic() >= end:  # the content may have ended because its time did
        raise TimeoutError("timed out")
    return content, kind


def _answer(
    opener: urllib.request.OpenerDirector, request: urllib.request.Request, timeout: float, max_bytes: int
) -> tuple[bytes, str]:
    try:
        with opener.open(request, timeout=timeout) as answer:
            encoding = str(answer.headers.get("Content-Encoding") or "identity").strip().lower()
            if encoding != "identity":
                raise TooLarge(f"answered in the encoding {encoding[:40]!r}, which was not asked for")
            content: bytes = answer.read(max_bytes + 1)
            if answer.length and len(content) <= max_bytes:  # read with a limit, it does not raise this itself
                raise http.client.IncompleteRead(content, answer.length)
            kind = str(answer.headers.get("Content-Type") or "")
    except urllib.error.HTTPError as error:  # its text is read here, in time
        text = b""
        with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
            text = error.read(MAX_ERROR)
        error.close()
        raise urllib.error.HTTPError(error.url, error.code, error.msg, error.headers, io.BytesIO(text)) from None
    if len(content) > max_bytes:
        raise TooLarge(f"answered with more than {max_bytes >> 20} MB")
    return content, kind


def _shut(sockets: list[socket.socket]) -> None:
    """End the connections, so that reading from them ends at once."""
    for connected in sockets:
        with contextlib.suppress(OSError):
            socket.socket.shutdown(connected, socket.SHUT_RDWR)  # not the method of TLS, which would change its state


class _HTTP(urllib.request.HTTPHandler):
    """Enters the socket of each connection into a list."""

    def __init__(self, sockets: list[socket.socket]) -> None:
        super().__init__()
        self.sockets = sockets

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_watched(http.client.HTTPConnection, self.sockets), request)


class _HTTPS(urllib.request.HTTPSHandler):
    """The same with TLS."""

    def __init__(self, sockets: list[socket.socket]) -> None:
        super().__init__()
        self.sockets = sockets

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_watched(http.client.HTTPSConnection, self.sockets), request)


def _watched(kind: type[http.client.HTTPConnection], sockets: list[socket.socket]) -> Any:
    """A class of connections that enter their sockets into a list when they are connected."""

    class Watched(kind):  # type: ignore[valid-type, misc]
        def connect(self) -> None:
            super().connect()
            sockets.append(self.sock)

    return Watched


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Raises a redirect as an error, before its address is read."""

    def http_error_302(self, *args: Any) -> None:
        return None

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302  # type: ignore[assignment]
