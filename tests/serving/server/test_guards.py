"""The guard: hosts and origins, bodies, clients that hang up, errors, what is logged and counted."""

import json
import re
import threading
import time

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from deltatune.core.errors import DeltatuneError
from deltatune.serving.server.guard.bounds import Bounds
from deltatune.serving.server.guard.origins import Origins, check_exposure
from deltatune.serving.server.guard.request_log import RequestLog
from support.guarded_server import GuardedServer, client, read_all, wait_for

SMALL = Bounds(body_bytes=1000, all_bodies_bytes=1500, body_seconds=0.4, linger_seconds=0.2)


def error_of(raw):
    """Status and error of an answer that came over a bare connection."""
    head, _, body = raw.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]


# ---- where requests come from


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *[(name, 200) for name in ("127.0.0.1", "localhost:8000", "LOCALHOST", "[::1]:80", "localhost.")],
        *[(name, 421) for name in ("evil.example", "localhost.evil.example:8000", "127.0.0.2", "", "10.0.0.1")],
    ],
)
def test_a_local_server_answers_to_names_of_this_machine_alone(host, status):
    scope = {"method": "GET", "headers": [(b"host", host.encode())]}
    origins = Origins.of("127.0.0.1")
    if status == 200:
        origins.check(scope)
    else:
        with pytest.raises(Exception, match="not called so") as error:
            origins.check(scope)
        assert error.value.status == 421


def test_two_host_headers_are_none():
    with pytest.raises(Exception, match="not called so"):
        Origins.of("127.0.0.1").check({"headers": [(b"host", b"localhost"), (b"host", b"localhost")]})


def test_further_names_and_open_addresses():
    def passes(origins, name):
        try:
            origins.check({"headers": [(b"host", name)]})
        except Exception:
            return False
        return True

    assert passes(Origins.of("127.0.0.1", ("AI.example.com",)), b"ai.example.com")
    assert passes(Origins.of("0.0.0.0"), b"anything.example")
    named = Origins.of("0.0.0.0", ("ai.example.com",))
    assert passes(named, b"ai.example.com:443")
    assert not passes(named, b"evil.example")


def test_pages_of_other_origins_may_not_call():
    with GuardedServer().running() as address, client(address) as http:
        own = http.post("/v1/echo", json={}, headers={"Origin": address})
        assert own.status_code == 200
        assert "access-control-allow-origin" not in own.headers
        for origin in ("https://evil.example", "null", "http://127.0.0.1:1", "file://", "http://[", "http://]:80", "x"):
            foreign = http.post("/v1/echo", json={}, headers={"Origin": origin})
            assert (foreign.status_code, foreign.json()["error"]["code"]) == (403, "origin_not_allowed")
        asks = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
        assert "access-control-allow-origin" not in http.options("/v1/echo", headers=asks).headers


def test_pages_that_are_allowed_may():
    server = GuardedServer(origins=Origins.of("127.0.0.1", (), ("https://chat.example/",)))
    with server.running() as address, client(address) as http:
        headers = {"Origin": "https://chat.example"}
        answer = http.post("/v1/echo", json={}, headers=headers)
        assert answer.headers["access-control-allow-origin"] == "https://chat.example"
        assert answer.headers["vary"] == "Origin"
        asked = http.options("/v1/echo", headers=headers | {"Access-Control-Request-Method": "POST"})
        assert asked.status_code == 204
        assert "authorization" in asked.headers["access-control-allow-headers"]
        assert http.post("/v1/echo", json={}, headers={"Origin": "https://other.example"}).status_code == 403


def test_without_keys_a_server_is_local_unless_told_otherwise():
    for host in ("127.0.0.1", "localhost", "::1", "[::1]", "127.3.2.1"):
        check_exposure(host, has_keys=False, no_keys=False)
    check_exposure("0.0.0.0", has_keys=True, no_keys=False)
    check_exposure("0.0.0.0", has_keys=False, no_keys=True)
    for host in ("0.0.0.0", "192.168.1.2", "ai.example.com", "::"):
        with pytest.raises(DeltatuneError, match=r"without keys anyone .*deltatune keys add.*--no-keys"):
            check_exposure(host, has_keys=False, no_keys=False)
    with pytest.raises(DeltatuneError, match="exclude each other"):
        check_exposure("0.0.0.0", has_keys=True, no_keys=True)


def test_headers_of_every_answer():
    with GuardedServer().running() as address, client(address) as http:
        ids = set()
        for answer in (http.post("/v1/echo", json={}), http.get("/v1/nothing"), http.get("/"), http.get("/v1/boom")):
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["x-frame-options"] == "DENY"
            assert answer.headers["referrer-policy"] == "no-referrer"
            assert answer.headers["content-security-policy"].startswith("default-src 'none'")
            assert "server" not in answer.headers
            assert re.fullmatch(r"req_[0-9a-f]{32}", answer.headers["x-request-id"])
            ids.add(answer.headers["x-request-id"])
        assert len(ids) == 4


# ---- bodies


def test_bodies_that_are_too_long_are_refused_whatever_their_length_says():
    server = GuardedServer(SMALL)
    with server.running() as address, client(address) as http:
        assert http.post("/v1/echo", json={"a": "x" * 900}).status_code == 200

        def parts():
            for _ in range(20):
                yield b"x" * 100

        for content in (b"x" * 1001, parts()):
            answer = http.post("/v1/echo", content=content)
            assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
            assert answer.headers["connection"] == "close"
        assert server.guard.bodies.held == 0
    assert len(server.seen) == 1


@pytest.mark.slow
def test_a_huge_body_is_refused_before_it_has_arrived_and_its_client_reads_the_answer():
    server = GuardedServer(Bounds(body_bytes=1000, linger_seconds=0.3))
    with server.running():
        with server.connect() as sock:
            sock.sendall(b"POST /v1/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000000\r\n\r\n")
            for _ in range(50):
                sock.sendall(b"x" * 100_000)
            assert error_of(read_all(sock))[0] == 413
        with server.connect() as sock:  # chunked, without any length
            sock.sendall(b"POST /v1/echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
            for _ in range(50):
                sock.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            assert error_of(read_all(sock))[0] == 413
        assert wait_for(lambda: server.guard.bodies.held == 0)


def test_a_body_that_is_shorter_than_it_says_ends_as_late():
    server = GuardedServer(SMALL)
    with server.running(), server.connect() as sock:
        sock.sendall(b"POST /v1/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\n{")
        began = time.monotonic()
        assert error_of(read_all(sock)) == (
            408,
            {
                "message": "The body did not arrive within 0.4 seconds.",
                "type": "invalid_request_error",
                "param": None,
                "code": "request_timeout",
            },
        )
        assert 0.3 < time.monotonic() - began < 3.5


@pytest.mark.slow
def test_a_body_that_trickles_in_is_late_too():
    server = GuardedServer(SMALL)
    with server.running(), server.connect() as sock:
        sock.sendall(b"POST /v1/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\n")
        for _ in range(6):
            sock.sendall(b"x")
            time.sleep(0.1)
        assert error_of(read_all(sock))[0] == 408


def test_all_bodies_together_have_a_bound():
    server = GuardedServer(SMALL)
    with server.running() as address, client(address) as http:
        with server.connect() as sock:
            sock.sendall(b"POST /v1/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 950\r\n\r\n" + b"x" * 900)
            assert wait_for(lambda: server.guard.bodies.held == 900)
            answer = http.post("/v1/echo", json={"a": "x" * 900})
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert wait_for(lambda: server.guard.bodies.held == 0)
        assert http.post("/v1/echo", json={"a": "x" * 900}).status_code == 200
    assert any(event["error"] == "client_gone" for event in server.lines.events())


def test_headers_have_a_bound():
    server = GuardedServer(Bounds(header_bytes=8192))
    with server.running() as address, client(address) as http:
        assert http.get("/health", headers={"X-A": "x" * 5000}).status_code == 200
        head = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-A: " + b"x" * 40_000
        for content in (head + b"\r\n\r\n", head[:9000]):  # in one packet, and not yet at its end
            with server.connect() as sock:
                sock.sendall(content)
                assert error_of(read_all(sock))[0] == 431


# ---- clients that hang up, requests that take too long


@pytest.mark.parametrize(("path", "body"), [("slow", {"seconds": 30}), ("stream", {"parts": 10000})])
def test_a_client_that_hangs_up_ends_its_request(path, body):
    server = GuardedServer()
    with server.running() as address:
        content = json.dumps(body).encode()
        with server.connect() as sock:
            head = f"POST /v1/{path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
            sock.sendall(head.encode() + content)
            assert wait_for(lambda: server.guard.running)
            if path == "stream":
                assert b"xxx" in sock.recv(65536)
            time.sleep(0.05)
            assert server.cancelled == []
        assert wait_for(lambda: server.cancelled == [path])
        assert wait_for(lambda: not server.guard.running)
        assert wait_for(lambda: server.lines.events())
        with client(address) as http:
            assert http.get("/health").status_code == 200
    assert (server.lines.events()[0]["status"], server.lines.events()[0]["error"]) == (499, "client_gone")


@pytest.mark.slow
def test_a_request_that_takes_too_long_is_ended(monkeypatch):
    monkeypatch.setattr("deltatune.serving.server.guard.guards.GRACE", 0.0)
    server = GuardedServer(Bounds(request_seconds=0.3))
    with server.running() as address, client(address) as http:
        answer = http.post("/v1/slow", json={"seconds": 30})
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
        with pytest.raises(httpx.RemoteProtocolError):
            http.post("/v1/stream", json={"parts": 10000})
        assert sorted(server.cancelled) == ["slow", "stream"]
        assert not server.guard.running


@pytest.mark.slow
def test_requests_of_one_connection_follow_each_other():
    """Two requests in one packet: the second is not taken for a client that hangs up."""
    server = GuardedServer()
    with server.running(), server.connect() as sock:
        body = b'{"seconds": 0.2}'
        one = b"POST /v1/slow HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        last = one.replace(b"Host", b"Connection: close\r\nHost")
        sock.sendall(one + one + last)
        assert read_all(sock).count(b'{"slept":true}') == 3


# ---- errors, the log, metrics


def test_an_error_shows_nothing_of_itself_but_its_id_is_in_the_log():
    server = GuardedServer()
    with server.running() as address, client(address) as http:
        answer = http.get("/v1/boom")
        assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
        assert "secret words" not in answer.text
        assert "Traceback" not in answer.text
    (event,) = server.lines.events("error")
    assert event["id"] == answer.headers["x-request-id"]
    assert "secret words" in event["traceback"]
    assert server.lines.events()[0]["error"] == "RuntimeError"


def test_the_log_has_one_line_for_each_request_and_no_prompts():
    server = GuardedServer()
    with server.running() as address, client(address) as http:
        http.post("/v1/echo", json={"model": "german\n{}", "prompt": "a secret", "used": 7})
        http.post("/v1/stream", json={"parts": 3})
        http.post("/v1/echo", content=b"{")
        http.get("/v1/a-secret/path")
        assert wait_for(lambda: len(server.lines.events()) == 4)
    one, two, three, four = server.lines.events()
    assert set(one) == {
        *("time", "event", "id", "key", "client", "method", "route", "model", "status", "ms", "first_token_ms"),
        *("tokens_in", "tokens_out", "error"),
    }
    assert (one["route"], one["model"], one["status"], one["tokens_in"]) == ("/v1/echo", "german\n{}", 200, 7)
    assert one["key"] == "anonymous"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", one["time"])
    assert (two["tokens_out"], two["status"]) == (3, 200)
    assert 0 < two["first_token_ms"] <= two["ms"]
    assert (three["status"], three["error"]) == (500, "JSONDecodeError")
    assert (four["route"], four["status"]) == ("unmatched", 404)
    assert "secret" not in server.lines.getvalue()


def test_the_log_shows_prompts_where_asked_to():
    server = GuardedServer(bodies=True)
    with server.running() as address, client(address) as http:
        http.post("/v1/echo", json={"prompt": "not so secret"})
        assert wait_for(lambda: server.lines.events())
    assert json.loads(server.lines.events()[0]["body"]) == {"prompt": "not so secret"}


def test_a_log_that_cannot_be_written_stops_nothing():
    class Full:
        def write(self, text):
            raise BrokenPipeError

        flush = write

    RequestLog(Full()).event("anything", text="x")


def test_metrics_count_by_route_and_have_no_label_that_clients_choose():
    server = GuardedServer()
    with server.running() as address, client(address) as http:
        for place in range(20):
            http.post("/v1/echo", json={"model": f"adapter-{place}", "used": 5})
            http.get(f"/v1/nothing/{place}")
            http.request(f"X{place}", "/v1/echo")
        http.post("/v1/stream", json={"parts": 3})
        http.post("/v1/adapters/german/load")
        server.guard.draining = True
        http.post("/v1/echo", json={})
        server.guard.draining = False
        answer = http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    assert samples["deltatune_requests_total", "/v1/echo", "200", "POST", "generate"] == 20
    assert samples["deltatune_requests_total", "404", "GET", "none", "unmatched"] == 20
    assert samples["deltatune_requests_total", "/v1/adapters/{name}/load", "200", "POST", "none"] == 1
    assert samples["deltatune_refused_total", "503"] == 1
    assert samples["deltatune_requests_total", "/v1/echo", "503", "POST", "none"] == 1
    assert samples["deltatune_tokens_in_total", "generate"] == 100
    assert samples["deltatune_tokens_out_total", "none"] == 3
    assert samples["deltatune_first_token_seconds_count",] == 1
    assert samples["deltatune_request_seconds_count", "/v1/echo"] >= 20
    assert samples["deltatune_requests_in_flight",] == 1  # the scrape itself
    assert samples["deltatune_engine_queued",] == 3
    assert samples["deltatune_engine_evictions_total",] == 2
    assert "adapter-" not in answer.text
    assert "X3" not in answer.text


def test_health_and_readiness():
    state = {"alive": True}
    server = GuardedServer(alive=lambda: state["alive"])
    with server.running() as address, client(address) as http:
        assert [http.get(path).status_code for path in ("/health", "/ready")] == [200, 200]
        assert [http.head(path).status_code for path in ("/health", "/ready")] == [200, 200]
        assert http.post("/v1/stream", json={"parts": 1}).headers["x-accel-buffering"] == "no"
        server.guard.draining = True
        assert [http.get(path).status_code for path in ("/health", "/ready", "/metrics")] == [200, 503, 200]
        refused = http.post("/v1/echo", json={})
        assert (refused.status_code, refused.headers["connection"]) == (503, "close")
        server.guard.draining, state["alive"] = False, False
        assert [http.get(path).status_code for path in ("/health", "/ready")] == [503, 503]


def test_bounds_are_checked():
    with pytest.raises(DeltatuneError, match="body_seconds must be above 0"):
        Bounds(body_seconds=0)
    with pytest.raises(DeltatuneError, match="must hold one body"):
        Bounds(all_bodies_bytes=10)


@pytest.mark.slow
def test_many_requests_at_once_are_all_answered():
    server = GuardedServer()
    with server.running() as address:
        answers = []

        def ask():
            with client(address) as http:
                answers.append(http.post("/v1/slow", json={"seconds": 0.05}).status_code)

        threads = [threading.Thread(target=ask) for _ in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == [200] * 40
        assert wait_for(lambda: not server.guard.running)
