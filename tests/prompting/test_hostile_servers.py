"""Servers that drip, flood, redirect or answer nonsense: plain errors in bounded time and memory."""

import gzip
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from deltatune.core.errors import DeltatuneError
from deltatune.prompting import OpenAICompatible, Truncated
from deltatune.prompting.endpoints import openai_server

GOOD = json.dumps({"choices": [{"message": {"content": "hello"}, "finish_reason": "stop"}]}).encode()


class RawServer:
    """A socket on this machine that gives each connection to `answer`."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}/v1"
        self.answer: Callable[[socket.socket], None] = lambda connection: None
        self.asked = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            self.asked += 1
            threading.Thread(target=self._one, args=(connection,), daemon=True).start()

    def _one(self, connection: socket.socket) -> None:
        with connection:
            try:
                connection.recv(65536)
                self.answer(connection)
            except OSError:
                pass

    def sends(self, content: bytes, status: str = "200 OK", **headers: str) -> None:
        """Answer with this."""
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(content)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        data = "\r\n".join([*lines, "", ""]).encode() + content
        self.answer = lambda connection: connection.sendall(data)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RawServer]:
    monkeypatch.setenv("no_proxy", "*")
    made = RawServer()
    yield made
    made.socket.close()


def error_of(server: RawServer, **options: float) -> str:
    endpoint = OpenAICompatible(server.url, "m", **{"timeout": 1.0, "retries": 0, **options})  # type: ignore[arg-type]
    start = time.monotonic()
    with pytest.raises(DeltatuneError) as caught:
        endpoint(["hi"])
    assert time.monotonic() - start < 4
    message = str(caught.value)
    assert len(message) < 1500
    assert message.isprintable()
    return message


@pytest.mark.parametrize("headers", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"])
def test_a_server_that_drips_is_stopped_at_the_timeout(server: RawServer, headers: bytes) -> None:
    def drip(connection: socket.socket) -> None:
        connection.sendall(headers)
        for byte in (b"HTTP/1.1 200 OK\r\nX: " if not headers else b"") + b"x" * 1000:
            connection.sendall(bytes([byte]))
            time.sleep(0.1)

    server.answer = drip
    assert "too slow (timed out)" in error_of(server)
    assert server.asked == 1


def test_an_answer_in_pieces_without_end_is_bounded(server: RawServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_server, "MAX_ANSWER", 1 << 20)

    def flood(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            connection.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")

    server.answer = flood
    assert "answered with more than 1 MB" in error_of(server, timeout=3.0)


@pytest.mark.parametrize(
    ("content", "status", "headers", "message"),
    [
        (b"", "307 Moved", {"Location": "http://elsewhere/"}, "redirects to http://elsewhere/"),
        (b"", "302 Found", {"Location": "http://elsewhere\x1b[2J/"}, "redirects to http://elsewhere?[2J/"),
        (gzip.compress(b"0" * 10_000_000), "200 OK", {"Content_Encoding": "gzip"}, "the encoding 'gzip'"),
        (b"<html>", "200 OK", {"Content_Type": "text/html"}, "answered of type text/html, but not in OpenAI's format"),
        (b'{"choices": "\xff"}', "200 OK", {}, "it is not UTF-8"),
        (b"[" * 100_000, "200 OK", {}, "nested more than 100 deep"),
        (b'{"a": 1, "a": 2}', "200 OK", {}, "the key 'a' is repeated"),
        (b'{"choices": [' + b"9" * 5000 + b"]}", "200 OK", {}, "has 5,000 characters"),
        (b'{"choices": [{"message": {"content": "\\ud800"}}]}', "200 OK", {}, "half of a surrogate pair"),
        (b'{"choices": []}', "200 OK", {}, "not in OpenAI's format"),
        (b'{"choices": [{"message": {"content": 5}}]}', "200 OK", {}, "not in OpenAI's format"),
        (b"[" * 60_000, "400 Bad", {}, "refused the request (400): [[["),
        (b'{"error": {"message": "\x1b[2J\\u001b[31mred"}}', "400 Bad", {}, "refused the request (400): "),
        (b"x" * 10_000_000, "500 Bad", {}, "answered 500: xxx"),
        (b"", "503 Busy", {"Retry_After": "1e400"}, "answered 503; tried once"),
        (b"", "999999 \x1b[2J", {}, "HTTP/1.1 999999"),
        (b"", "200 OK", {f"X{i}": "y" for i in range(200)}, "more than 100 headers"),
    ],
    ids=lambda value: str(value)[:16],
)  # fmt: skip
def test_nonsense_is_a_plain_error(
    server: RawServer, content: bytes, status: str, headers: dict[str, str], message: str
) -> None:
    server.sends(content, status, **headers)
    assert message in error_of(server)


def test_an_answer_that_breaks_off_is_asked_for_again(server: RawServer) -> None:
    def broken_first(connection: socket.socket) -> None:
        sent = GOOD[:-20] if server.asked == 1 else GOOD
        connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {len(GOOD)}\r\n\r\n".encode() + sent)

    server.answer = broken_first
    assert OpenAICompatible(server.url, "m", timeout=5.0, backoff=0.0)(["hi"]) == ["hello"]
    assert server.asked == 2


def test_a_text_that_the_server_filtered_is_incomplete(server: RawServer) -> None:
    server.sends(GOOD.replace(b"stop", b"content_filter"))
    assert isinstance(OpenAICompatible(server.url, "m", timeout=5.0)(["hi"])[0], Truncated)


def test_no_error_shows_the_key(server: RawServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    server.sends(b'{"request": {"Authorization": "Bearer secret"}}')
    with pytest.raises(DeltatuneError, match=r"Bearer \*\*\*"):
        OpenAICompatible(server.url, "m", key="MY_KEY")(["hi"])
    server.sends(GOOD.replace(b"hello", b"no secret"))
    assert OpenAICompatible(server.url, "m", key="MY_KEY")(["hi"]) == ["no secret"]
    for value in ("sec\nret", "schlüssel", "sec€ret"):
        monkeypatch.setenv("MY_KEY", value)
        with pytest.raises(
            DeltatuneError, match="MY_KEY holds a line break or a character that is not ASCII"
        ) as caught:
            OpenAICompatible(server.url, "m", key="MY_KEY")(["hi"])
        assert value not in str(caught.value)


def test_a_good_answer_is_read_in_time(server: RawServer) -> None:
    server.sends(GOOD, Content_Type="application/json")
    assert OpenAICompatible(server.url, "m", timeout=5.0)(["hi", "again"]) == ["hello", "hello"]


@pytest.mark.parametrize(
    "url",
    [
        "http://[::1",
        "http://a:99999/v1",
        "http://a:b/",
        "http://a b/",
        "http://a\n/",
        "ftp://a",
        "http://a/v1é",
        "http://a..b",
    ],
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(DeltatuneError, match="is not an address"):
        OpenAICompatible(url, "m")


@pytest.mark.parametrize("url", ["http://a/v1?version=1", "http://a/v1#chat"])
def test_an_address_with_a_query_is_refused(url: str) -> None:
    with pytest.raises(DeltatuneError, match=r"has a part after \? or #"):
        OpenAICompatible(url, "m")


def test_a_timeout_without_end_is_refused() -> None:
    for timeout in (0.0, float("inf"), 1e10):
        with pytest.raises(DeltatuneError, match="timeout must be"):
            OpenAICompatible("http://a", "m", timeout=timeout)
