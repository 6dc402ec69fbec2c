"""Connections: clients that are slow, silent, many, or speak no HTTP."""

import json
import time

import pytest

from deltatune.serving.server.guard.api_keys import ApiKey, KeyFile, add_key
from deltatune.serving.server.guard.bounds import Bounds
from support.guarded_server import GuardedServer, client, read_all, wait_for

QUICK = Bounds(header_seconds=0.3, idle_seconds=1, write_seconds=0.4, connections=8, body_seconds=1, linger_seconds=0.2)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server():
    server = GuardedServer(QUICK)
    with server.running():
        yield server


def seconds_until_closed(sock):
    began = time.monotonic()
    answer = read_all(sock)
    return time.monotonic() - began, answer


def test_silent_connections_are_closed(server):
    with server.connect() as sock:
        seconds, answer = seconds_until_closed(sock)
        assert 0.2 < seconds < 2
        assert answer.startswith(b"HTTP/1.1 408 ")


def test_headers_that_trickle_in_are_late(server):
    with server.connect() as sock:
        began = time.monotonic()
        try:
            for letter in b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: xxxxxxxxxxxxxxxxxxxxxxx":
                sock.sendall(bytes([letter]))
                time.sleep(0.03)
        except OSError:
            pass
        assert time.monotonic() - began < 1.5


def test_the_second_request_of_a_connection_has_the_same_time(server):
    with server.connect() as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert sock.recv(65536).startswith(b"HTTP/1.1 200")
        time.sleep(0.4)  # longer than headers may take: a connection may wait between requests
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: loc")
        seconds, answer = seconds_until_closed(sock)
        assert 0.2 < seconds < 2
        assert b"408" in answer


def test_idle_connections_are_closed(server):
    with server.connect() as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        seconds, _ = seconds_until_closed(sock)
        assert 0.5 < seconds < 3


def test_a_running_request_is_not_cut_by_the_time_of_headers(server):
    with client(f"http://127.0.0.1:{server.port}") as http:
        assert http.post("/v1/slow", json={"seconds": 0.7}).status_code == 200


def test_who_does_not_read_is_cut_off_and_the_request_ended(server):
    with server.connect() as sock:
        body = json.dumps({"parts": 10**6, "size": 10**6, "pause": 0}).encode()
        sock.sendall(b"POST /v1/stream HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        assert wait_for(lambda: server.guard.running)
        assert wait_for(lambda: not server.guard.running)
        assert server.cancelled[-1] == "stream"


def test_who_reads_slowly_is_served_as_long_as_it_reads(server):
    with server.connect() as sock:
        body = json.dumps({"parts": 8, "size": 10**6, "pause": 0}).encode()
        head = b"POST /v1/stream HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        sock.sendall(head % len(body) + body)
        size = 0
        while part := sock.recv(2**17):
            size += len(part)
            time.sleep(0.01)
        assert size > 8 * 10**6


@pytest.mark.parametrize("content", [b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n"])
def test_what_is_no_http_gets_an_error_of_the_usual_form(server, content):
    with server.connect() as sock:
        sock.sendall(content + b"\r\n\r\n")
        head, _, body = read_all(sock).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
        assert json.loads(body)["error"]["type"] == "invalid_request_error"


def test_lengths_that_disagree_are_refused(server):
    head = b"POST /v1/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n"
    for more in (b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip\r\n"):
        with server.connect() as sock:
            sock.sendall(head + more + b"\r\n{}xxx0\r\n\r\n")
            answer = read_all(sock)
            assert answer.count(b"HTTP/1.1 ") == 1
            assert int(answer.split()[1]) in (400, 501)


def test_a_request_hidden_in_the_body_of_another_is_not_answered(server):
    hidden = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
    head = b"POST /v1/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n" % (len(hidden) + 5)
    with server.connect() as sock:
        sock.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden)
        answer = read_all(sock)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"exclude each other" in answer


def test_a_body_that_follows_a_refusal_keeps_no_connection(tmp_path):
    add_key(tmp_path / "keys.json", ApiKey("anna"))
    server = GuardedServer(QUICK, KeyFile(tmp_path / "keys.json"))
    with server.running(), server.connect() as sock:
        sock.sendall(b"POST /v1/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\n{")
        seconds, answer = seconds_until_closed(sock)
        assert answer.startswith(b"HTTP/1.1 401 ")
        assert b"connection: close" in answer
        assert seconds < 1


def test_connections_have_a_bound(server):
    assert wait_for(lambda: not server.server.server_state.connections)
    socks = [server.connect() for _ in range(9)]
    try:
        answer = read_all(socks[-1])
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"too many connections" in answer
    finally:
        for sock in socks:
            sock.close()
    assert wait_for(lambda: not server.server.server_state.connections)
    with client(f"http://127.0.0.1:{server.port}") as http:
        assert http.get("/health").status_code == 200
