"""The whole server under clients that hang up, come in numbers, send rubbish, or must not see each other."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from deltatune.serving.engine.engine_limits import EngineLimits
from deltatune.serving.server.guard.api_keys import ApiKey, KeyFile, add_key, remove_key
from deltatune.serving.server.guard.bounds import Bounds
from deltatune.serving.server.guard.guards import Guarding
from deltatune.serving.server.guard.request_log import RequestLog
from support.guarded_server import GuardedServer, Lines, client, read_all, wait_for
from support.served import Served, chat_tokenizer, tiny_llama

LONG = {"model": "plain", "prompt": "the film", "max_tokens": 100, "ignore_eos": True, "temperature": 0}


def quiet(server):
    """Whether nothing runs or waits, in the server and in its engine."""
    numbers = server.engine.statistics()
    return not server.guard.running and numbers.running == 0 and numbers.queued == 0


def in_threads(count, act):
    threads = [threading.Thread(target=act, args=(place,)) for place in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.slow
def test_more_requests_than_fit_are_refused_and_the_others_answered_right(adapters):
    server = Served(adapters, Guarding(log=RequestLog(Lines())), EngineLimits(rows=4, queue=8))
    with server.running():
        server.engine.statistics()
        expected = {
            name: server.post("/v1/completions", **LONG | {"model": name})["choices"][0]["text"]
            for name in ("plain", "plain-ia3", "base")
        }
        answers = []

        def ask(place):
            name = ("plain", "plain-ia3", "base")[place % 3]
            with server.client() as http:
                answer = http.post("/v1/completions", json=LONG | {"model": name})
            answers.append((name, answer))

        in_threads(200, ask)
        statuses = [answer.status_code for _, answer in answers]
        assert set(statuses) == {200, 503}
        assert statuses.count(200) >= 12
        for name, answer in answers:
            if answer.status_code == 200:
                assert answer.json()["choices"][0]["text"] == expected[name]
            else:
                assert answer.headers["retry-after"] == "1"
                assert answer.json()["error"]["type"] == "server_error"
        assert wait_for(lambda: quiet(server))
        assert server.post("/v1/completions", **LONG)["choices"][0]["text"] == expected["plain"]


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_clients_that_hang_up_free_their_rows(adapters, stream):
    server = Served(adapters, Guarding(log=RequestLog(Lines())), EngineLimits(rows=2, queue=50))
    with server.running():
        address = server.address.removeprefix("http://").split(":")
        socks = []
        for _ in range(12):  # two rows run, the others wait
            body = json.dumps(LONG | {"stream": stream, "max_tokens": 110, "n": 4}).encode()
            socks.append(socket.create_connection((address[0], int(address[1]))))
            head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            socks[-1].sendall(head.encode() + body)
        assert wait_for(lambda: server.engine.statistics().running >= 1)
        if stream:
            assert b"200" in socks[0].recv(100)
        done_before = server.engine.statistics().cancelled
        for sock in socks:
            sock.close()
        assert wait_for(lambda: quiet(server), 10)
        assert server.engine.statistics().cancelled > done_before
        assert server.post("/v1/completions", **LONG | {"max_tokens": 4})["usage"]["completion_tokens"] == 4


@pytest.mark.slow
def test_a_server_whose_engine_has_ended_says_so_and_hangs_on_nothing(adapters):
    server = Served(adapters, Guarding(log=RequestLog(Lines())))
    with server.running():
        answers = []

        def ask(place):
            with server.client() as http:
                answers.append(http.post("/v1/completions", json=LONG | {"n": 4}))

        threads = [threading.Thread(target=ask, args=(place,)) for place in range(4)]
        for thread in threads:
            thread.start()
        assert wait_for(lambda: server.engine.statistics().running > 0)
        server.engine.close()
        for thread in threads:
            thread.join(10)
        assert {answer.status_code for answer in answers} <= {200, 503}
        assert len(answers) == 4
        assert server.http.post("/v1/completions", json=LONG).status_code == 503
        assert server.http.get("/health").status_code == server.http.get("/ready").status_code == 503
        assert server.http.get("/metrics").status_code == 200
        assert wait_for(lambda: not server.guard.running)


@pytest.mark.slow
def test_keys_see_nothing_of_each_other(adapters, tmp_path):
    path = tmp_path / "keys.json"
    anna = add_key(path, ApiKey("anna", adapters=("plain", "sst2*")))
    ben = add_key(path, ApiKey("ben", adapters=("plain", "base", "ner")))
    lines = Lines()
    server = Served(adapters, Guarding(keys=KeyFile(path), log=RequestLog(lines)))
    with server.running(), client(server.address, anna) as one, client(server.address, ben) as two:
        assert [model["id"] for model in one.get("/v1/models").json()["data"]] == ["plain", "sst2", "sst2-ia3"]
        assert [model["id"] for model in two.get("/v1/models").json()["data"]] == ["base", "ner", "plain"]
        assert {each["name"] for each in one.get("/v1/adapters").json()["data"]} == {"plain", "sst2", "sst2-ia3"}
        listed = one.get("/v1/adapters").json()
        assert listed["total"] == 3
        assert not {"requests", "running", "last_used"} & listed["data"][0].keys()  # they tell what others do
        for route in ("/v1/models/ner", "/v1/adapters/ner"):
            assert one.get(route).status_code == 404
        hidden = one.post("/v1/tag", json={"model": "ner", "input": "a"})
        missing = one.post("/v1/tag", json={"model": "nes", "input": "a"})
        assert (hidden.status_code, missing.status_code) == (404, 404)
        assert hidden.json()["error"]["message"].replace("ner", "nes") == missing.json()["error"]["message"]
        assert "sst2-ia3" not in two.post("/v1/classify", json={"model": "sst2-ia4", "input": "a"}).text
        bare = ({"model": "plain:0"}, {"adapters": {"plain": 0}})  # what anna, who may not use base, would get of it
        for model in ({"model": "plain:0.5+ner:0.5"}, {"adapters": {"plain": 1, "ner": 0.1}}, *bare):
            assert one.post("/v1/completions", json=LONG | {"model": None} | model).status_code == 404
        assert one.post("/v1/completions", json=LONG | {"model": "base"}).status_code == 404
        assert one.post("/v1/adapters/plain/unload").status_code == 403
        # What one key has asked makes nothing faster for another.
        words = " ".join(["the film is good and the plot was very bad"] * 5)
        cached = [
            http.post("/v1/completions", json=LONG | {"prompt": words, "max_tokens": 1}).json()["usage"]
            for http in (one, one, two, two)
        ]
        counts = [usage["prompt_tokens_details"]["cached_tokens"] for usage in cached]
        assert counts[0] == counts[2] == 0
        assert counts[1] == counts[3] > 0
    assert anna not in lines.getvalue()
    assert ben not in lines.getvalue()


@pytest.mark.slow
def test_tokens_that_are_promised_and_not_written_are_given_back(adapters, tmp_path):
    path = tmp_path / "keys.json"
    secret = add_key(path, ApiKey("anna", tokens_per_minute=300))
    server = Served(adapters, Guarding(keys=KeyFile(path), log=RequestLog(Lines())))
    with server.running(), client(server.address, secret) as http:
        left = 300
        for _ in range(3):
            answer = http.post("/v1/completions", json=LONG | {"max_tokens": 60, "stop": [" "]})
            assert answer.status_code == 200
            usage = answer.json()["usage"]
            left -= usage["total_tokens"]
        assert left > 200
        embedded = http.post("/v1/embeddings", json={"model": "base", "input": ["the film", "is good"]})
        assert embedded.status_code == 200
        left -= embedded.json()["usage"]["total_tokens"]
        much = http.post("/v1/completions", json=LONG | {"max_tokens": 100, "n": 3})
        assert (much.status_code, much.json()["error"]["type"]) == (429, "tokens")
        assert much.headers["x-ratelimit-remaining-tokens"] == str(left)


@pytest.mark.slow
def test_keys_change_while_many_requests_run(adapters, tmp_path):
    path = tmp_path / "keys.json"
    secret, other = add_key(path, ApiKey("anna")), add_key(path, ApiKey("ben"))
    server = Served(adapters, Guarding(keys=KeyFile(path), log=RequestLog(Lines())))
    with server.running():
        statuses, stop = [], threading.Event()

        def ask(place):
            with client(server.address, (secret, other)[place % 2]) as http:
                while not stop.is_set():
                    began = time.monotonic()
                    answer = http.post("/v1/classify", json={"model": "sst2", "input": "the film"})
                    statuses.append((place % 2, answer.status_code, began, time.monotonic()))

        threads = [threading.Thread(target=ask, args=(place,)) for place in range(6)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        before = time.monotonic()
        remove_key(path, "anna")
        removed = time.monotonic()
        for place in range(20):
            add_key(path, ApiKey(f"new-{place}"))
        time.sleep(0.5)
        stop.set()
        for thread in threads:
            thread.join()
        assert {status for which, status, *_ in statuses if which == 1} == {200}
        assert {status for which, status, _, end in statuses if which == 0 and end < before} == {200}
        assert {status for which, status, began, _ in statuses if which == 0 and began > removed} == {401}


PIECES = [
    *(
        b"GET ",
        b"POST ",
        b"/v1/echo",
        b"/health",
        b" HTTP/1.1",
        b"\r\n",
        b"\n",
        b"Host: localhost",
        b"Content-Length: 5",
    ),
    *(b"Content-Length: -1", b"Content-Length: 99999999999999999999", b"Transfer-Encoding: chunked", b"5\r\nhello\r\n"),
    *(
        b"0\r\n\r\n",
        b"FFFFFFFFFFFFFFFF\r\n",
        b"\x00",
        b"\xff\xfe",
        b": ",
        b"Authorization: Bearer x",
        b"hello",
        b"\r\n\r\n",
    ),
    *(b"Expect: 100-continue", b"Upgrade: websocket", b"Connection: upgrade", b"%00", b"/../../etc/passwd", b"{}"),
]


@pytest.mark.slow
def test_rubbish_on_the_wire_stops_nothing():
    server = GuardedServer(Bounds(header_seconds=0.2, body_seconds=0.2, linger_seconds=0.1, idle_seconds=1))
    draw = random.Random(5)
    with server.running() as address:
        for _ in range(150):
            content = b"".join(draw.choice(PIECES) for _ in range(draw.randrange(1, 14)))
            with server.connect() as sock:
                sock.sendall(content)
                sock.shutdown(socket.SHUT_WR)
                answer = read_all(sock)
            assert b" 500 " not in answer.split(b"\r\n")[0]
            assert b"Traceback" not in answer
        with client(address) as http:
            assert http.post("/v1/echo", json={}).status_code == 200
    assert server.lines.events("error") == [] or all(
        "JSONDecodeError" in event["traceback"] for event in server.lines.events("error")
    )
    assert wait_for(lambda: not server.guard.running)
    assert server.guard.bodies.held == 0


@pytest.mark.slow
def test_sigterm_in_the_middle_of_an_answer(adapters, tmp_path):
    """The command itself, in a process of its own."""
    model = tmp_path / "model"
    tiny_llama().save_pretrained(model)
    chat_tokenizer().save_pretrained(model)
    command = [sys.executable, "-m", "deltatune", "serve", "-m", str(model), "-a", f"plain={adapters / 'plain'}"]
    command += ["--other-base", "--port", "0", "--drain-seconds", "20"]
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    try:
        shown = iter(child.stdout.readline, "")
        address = next(word for line in shown for word in line.split() if word.startswith("http://127.0.0.1:"))
        address = address.rstrip("/,.")
        with client(address) as http:
            assert wait_for(lambda: http.get("/ready").status_code == 200)
            with http.stream("POST", "/v1/completions", json=LONG | {"n": 8, "stream": True}) as answer:
                lines = answer.iter_lines()
                next(lines)
                child.send_signal(signal.SIGTERM)
                with client(address) as late:
                    assert wait_for(lambda: late.get("/ready").status_code == 503, 3) or child.poll() is not None
                rest = list(lines)
            assert rest[-2] == "data: [DONE]"
            finished = [line for line in rest if '"finish_reason": "length"' in line]
            assert len(finished) == 8
        assert child.wait(15) == 0
        events = [json.loads(line) for line in child.stderr.read().splitlines() if line.startswith("{")]
        assert [event["status"] for event in events if event.get("route") == "/v1/completions"] == [200]
    finally:
        child.kill()
        child.communicate()
