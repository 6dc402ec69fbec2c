"""`deltatune serve` as a process while things around it fail: clients, other servers, its own end, its queue."""

import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from deltatune.store.adapter_store import AdapterStore
from support.guarded_server import wait_for
from support.serve_process import WRITERS, Answers, Asking, serving, text_of, write_all

pytestmark = pytest.mark.slow

STREAM = """
import json, socket, sys, time
body = json.dumps({
    "model": "plain", "prompt": "the film", "max_tokens": 1500, "temperature": 1, "ignore_eos": True, "stream": True,
    "n": 8, "logprobs": 10,
}).encode()
sock = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
head = f"POST /v1/completions HTTP/1.1\\r\\nHost: localhost\\r\\nContent-Length: {len(body)}\\r\\n\\r\\n"
sock.sendall(head.encode() + body)
print(sock.recv(100)[:12].decode(), flush=True)
while sock.recv(1000):
    time.sleep(0.001)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_all(tmp_path_factory.mktemp("served"))
    AdapterStore(folder / "store").add_all(folder / "adapters")
    return folder


@pytest.fixture(scope="module")
def offline(folder):
    return Answers(folder)


def test_one_of_two_servers_is_killed_and_its_clients_get_their_answers_from_the_other(folder, offline):
    expected = {name: offline.text(name, 60) for name in WRITERS}
    with serving(folder, folder / "store", name="one") as one, serving(folder, folder / "store", name="two") as two:
        moved, stop = [], threading.Event()

        def ask(place):
            """A proxy's client: the servers take turns, and where one does not answer the next one is asked."""
            asked = place
            count = 0
            while not stop.is_set():
                name = WRITERS[(place + count) % len(WRITERS)]
                asked += 1
                try:
                    answer = text_of((one, two)[asked % 2].ask(name, 60))
                except httpx.TransportError as error:
                    moved.append(error)
                    answer = text_of((one, two)[(asked + 1) % 2].ask(name, 60))
                assert answer == expected[name]
                count += 1
            return count

        asking = Asking(8, ask)
        time.sleep(3)
        one.signal(signal.SIGKILL)
        time.sleep(3)
        stop.set()
        counts = asking.wait(60)
        assert all(isinstance(count, int) and count > 1 for count in counts), counts
        assert moved
        assert two.end() == 0


def test_clients_that_stop_reading_hold_nobody_up(folder, offline):
    expected = {name: offline.text(name, 60) for name in WRITERS}
    with serving(folder, folder / "store", "--rows", 64) as server:
        port = server.address.rpartition(":")[2]
        command = [sys.executable, "-c", STREAM, port]
        clients = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
        try:
            for client in clients:
                assert client.stdout.readline() == "HTTP/1.1 200\n"
                client.send_signal(signal.SIGSTOP)
            answers = Asking(10, lambda place: text_of(server.ask(WRITERS[place % 5], 60))).wait(60)
            assert answers == [expected[WRITERS[place % 5]] for place in range(10)]
            assert server.metric("engine_running") == 24
        finally:
            for client in clients:
                client.kill()
                client.communicate()
        assert wait_for(lambda: server.metric("engine_running") == 0, 20)
        assert wait_for(lambda: server.metric("requests_in_flight") == 1, 20)  # the one that asks for the metrics
        assert text_of(server.ask("ia3", 60)) == expected["ia3"]
        assert server.end() == 0


def test_six_hundred_requests_on_a_queue_of_32(folder, offline):
    expected = {name: offline.text(name, 40) for name in WRITERS}
    with serving(folder, folder / "store", "--rows", 8, "--queue", 32) as server:

        def ask(place):
            with server.client() as http:
                return [server.ask(WRITERS[(place + turn) % 5], 40, http) for turn in range(10)]

        answers = [answer for several in Asking(60, ask).wait(120) for answer in several]
        assert {answer.status_code for answer in answers} == {200, 503}
        right = [answer for answer in answers if answer.status_code == 200]
        assert len(right) >= 40
        for answer in right:
            content = answer.json()
            assert content["choices"][0]["text"] == expected[content["model"].partition(":")[0]]
        refused = next(answer for answer in answers if answer.status_code == 503)
        assert "requests wait, as many as" in refused.json()["error"]["message"]
        assert refused.headers["retry-after"] == "1"
        assert server.metric("engine_refused_total") >= 600 - len(right)
        assert text_of(server.ask("plain", 40)) == expected["plain"]
        assert server.end() == 0
        server.events()


def test_sigterm_with_twenty_requests_running(folder, offline):
    expected = {name: offline.text(name, 400) for name in WRITERS}
    with serving(folder, folder / "store", "--drain-seconds", 100) as server:
        asking = Asking(20, lambda place: text_of(server.ask(WRITERS[place % 5], 400)))
        assert wait_for(lambda: server.metric("engine_running") == 20, 20)
        server.signal(signal.SIGTERM)
        with server.client() as http:
            assert wait_for(lambda: http.get("/ready").status_code == 503, 10)
            assert server.ask("plain", 5, http).status_code == 503
        assert asking.wait(100) == [expected[WRITERS[place % 5]] for place in range(20)]
        assert server.process.wait(20) == 0
        with pytest.raises(httpx.ConnectError):
            server.ask("plain", 5)
        server.events()


def test_a_log_on_a_full_disk(folder, offline):
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    with serving(folder, folder / "store", log=full) as server:
        for name in WRITERS:
            assert text_of(server.ask(name, 60)) == offline.text(name, 60)
        assert server.ask("nobody", 5).status_code == 404
        with socket.create_connection(("127.0.0.1", int(server.address.rpartition(":")[2]))) as sock:
            sock.sendall(b"no HTTP at all\r\n\r\n")
            assert sock.recv(100).startswith(b"HTTP/1.1 400")
        assert text_of(server.ask("plain", 60)) == offline.text("plain", 60)
        assert server.end() == 0


def test_every_adapter_has_another_answer(offline):
    assert len({offline.text(name, 60) for name in WRITERS}) == len(WRITERS)
