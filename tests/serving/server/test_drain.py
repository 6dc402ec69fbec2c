"""The end of a server: it refuses new requests, running ones finish, and the process ends with 0."""

import contextlib
import json
import resource
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from deltatune.serving.server.server_process import allow_connections
from support.child import in_child
from support.guarded_server import client, wait_for

PROGRAM = """
import sys
from deltatune.serving.server.guard.bounds import Bounds
from deltatune.serving.server.server_process import address_of, listen, serve_until_signal
from support.guarded_server import GuardedServer

server, sock = GuardedServer(Bounds(drain_seconds=float(sys.argv[1]))), listen("127.0.0.1", 0)
server.guard.guarding.log._stream = sys.stderr
serve_until_signal(server.guard, sock, lambda: print(address_of(sock), flush=True))
print("cancelled", server.cancelled, flush=True)
"""


@contextlib.contextmanager
def process(drain_seconds):
    command = [sys.executable, "-c", PROGRAM, str(drain_seconds)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield child, child.stdout.readline().strip()
    finally:
        child.kill()
        child.communicate()


def ask(address, path, body, answers):
    def run():
        try:
            with client(address) as http:
                answers.append(http.post(path, json=body).status_code)
        except Exception as error:
            answers.append(type(error).__name__)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_connections_beyond_the_files_that_a_process_may_have_by_default():
    def act():
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 4096))
        allow_connections(1000)
        first = resource.getrlimit(resource.RLIMIT_NOFILE)
        allow_connections(100_000)
        allow_connections(10)
        return 0, f"{first} {resource.getrlimit(resource.RLIMIT_NOFILE)}"

    assert in_child(act) == (0, "(2024, 4096) (4096, 4096)")


@pytest.mark.slow
def test_running_requests_finish_and_new_ones_are_refused():
    with process(20) as (child, address), client(address) as http:
        assert http.get("/ready").status_code == 200
        with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as sock:
            sock.sendall(b"no HTTP at all\r\n\r\n")
            assert sock.recv(100).startswith(b"HTTP/1.1 400")
        answers = []
        threads = [
            ask(address, "/v1/slow", {"seconds": 2}, answers),
            ask(address, "/v1/stream", {"parts": 60, "pause": 0.03}, answers),
        ]
        assert wait_for(lambda: "deltatune_requests_in_flight 3.0" in http.get("/metrics").text)
        child.send_signal(signal.SIGTERM)
        assert wait_for(lambda: http.get("/ready").status_code == 503)
        assert http.post("/v1/echo", json={}).status_code == 503
        for thread in threads:
            thread.join()
        assert answers == [200, 200]
        out, err = child.communicate(timeout=10)
        assert (child.returncode, out) == (0, "cancelled []\n")
        assert "Traceback" not in err
        events = [json.loads(line) for line in err.splitlines()]  # also what the libraries say
        assert "Invalid HTTP request received." in {event.get("message") for event in events}


@pytest.mark.slow
@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_what_takes_longer_than_the_bound_is_cut_off(sig):
    with process(0.5) as (child, address):
        answers = []
        threads = [ask(address, path, {"seconds": 60, "parts": 10**6}, answers) for path in ("/v1/slow", "/v1/stream")]
        with client(address) as http:
            assert wait_for(lambda: "deltatune_requests_in_flight 3.0" in http.get("/metrics").text)
        began = time.monotonic()
        child.send_signal(sig)
        out, _ = child.communicate(timeout=20)
        assert time.monotonic() - began < 6
        assert child.returncode == 0
        assert "slow" in out
        assert "stream" in out
        for thread in threads:
            thread.join()
        assert sorted(map(str, answers)) == ["503", "RemoteProtocolError"]


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once():
    with process(60) as (child, address):
        answers = []
        thread = ask(address, "/v1/slow", {"seconds": 60}, answers)
        with client(address) as http:
            assert wait_for(lambda: "deltatune_requests_in_flight 2.0" in http.get("/metrics").text)
            child.send_signal(signal.SIGTERM)
            assert wait_for(lambda: http.get("/ready").status_code == 503)
        began = time.monotonic()
        child.send_signal(signal.SIGTERM)
        assert child.wait(10) == 128 + signal.SIGTERM
        assert time.monotonic() - began < 2
        thread.join()


@pytest.mark.slow
def test_an_idle_server_ends_at_once_though_connections_are_open():
    with process(60) as (child, address), client(address) as http:
        assert http.get("/health").status_code == 200  # the connection stays open
        child.send_signal(signal.SIGTERM)
        assert child.wait(5) == 0
