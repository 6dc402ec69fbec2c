"""Limits of a key: in any minute, and at once."""

import asyncio
import random
import threading

import pytest

from deltatune.serving.server.guard.api_keys import ApiKey, KeyFile, add_key
from deltatune.serving.server.guard.limits import Limiter, MinuteWindow
from deltatune.serving.server.guard.refusals import Refusal
from support.guarded_server import GuardedServer, client, wait_for


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def admitted(limiter, key):
    try:
        limiter.admit(key).close(0)
    except Refusal as refusal:
        return refusal
    return None


def test_no_minute_has_more_requests_than_the_limit(clock):
    """At random moments: whatever sixty seconds one looks at."""
    limiter, key, draw, times = Limiter(clock), ApiKey("anna", requests_per_minute=7), random.Random(1), []
    for _ in range(2000):
        clock.now += draw.expovariate(1 / 4)
        if admitted(limiter, key) is None:
            times.append(clock.now)
    assert len(times) > 500
    assert all(later - earlier >= 60 for earlier, later in zip(times, times[7:], strict=False))


def test_who_waits_as_told_is_admitted_and_not_before(clock):
    limiter, key = Limiter(clock), ApiKey("anna", requests_per_minute=2)
    assert admitted(limiter, key) is None
    clock.now += 20
    assert admitted(limiter, key) is None
    refusal = admitted(limiter, key)
    assert (refusal.status, refusal.type, refusal.code) == (429, "requests", "rate_limit_exceeded")
    assert refusal.retry_after == pytest.approx(40)
    assert dict(refusal.headers)[b"retry-after"] == b"40"
    clock.now += 39.9
    assert admitted(limiter, key)
    clock.now += 0.2
    assert admitted(limiter, key) is None


def test_tokens_are_reserved_then_counted_as_used(clock):
    limiter, key = Limiter(clock), ApiKey("anna", tokens_per_minute=100)
    one = limiter.admit(key)
    one.reserve(60)
    two = limiter.admit(key)
    with pytest.raises(Refusal, match=r"tokens per minute \(TPM\): limit 100, used 60, requested 50") as error:
        two.reserve(50)
    assert error.value.type == "tokens"
    one.close(10)
    two.reserve(50)
    two.reserve(40)
    assert dict(two.headers)[b"x-ratelimit-remaining-tokens"] == b"0"
    two.close(90)
    two.close(5)
    refusal = admitted(limiter, key)
    assert refusal.retry_after == pytest.approx(60)
    clock.now += 60
    assert admitted(limiter, key) is None


def test_what_can_never_fit_is_said_so_without_a_time(clock):
    permit = Limiter(clock).admit(ApiKey("anna", tokens_per_minute=100))
    with pytest.raises(Refusal, match="Request too large for anna") as error:
        permit.reserve(101)
    assert error.value.retry_after is None


def test_a_request_longer_than_a_minute_leaves_nothing_behind(clock):
    limiter, key = Limiter(clock), ApiKey("anna", tokens_per_minute=100)
    permit = limiter.admit(key)
    permit.reserve(80)
    clock.now += 61
    permit.close(80)
    limiter.admit(key).reserve(100)


def test_windows_agree_with_a_plain_count(clock):
    window, kept, draw = MinuteWindow(), [], random.Random(3)
    for _ in range(500):
        clock.now += draw.random() * 10
        amount = draw.randrange(1, 20)
        wait = window.wait(clock.now, amount, 40)
        kept = [(at, of) for at, of in kept if at > clock.now - 60]
        assert (wait == 0) == (sum(of for _, of in kept) + amount <= 40)
        if wait:
            later = [(at, of) for at, of in kept if at > clock.now + wait - 60 + 1e-9]
            assert sum(of for _, of in later) + amount <= 40
        else:
            window.add_(clock.now, amount)
            kept.append((clock.now, amount))


def test_a_request_that_is_refused_for_its_tokens_takes_none(clock):
    limiter, key = Limiter(clock), ApiKey("anna", tokens_per_minute=100)
    running = limiter.admit(key)
    running.reserve(60)
    for tokens in (50, 500):
        permit = limiter.admit(key)
        with pytest.raises(Refusal):
            permit.reserve(tokens)
        permit.close(30)
    limiter.admit(key).reserve(40)


def test_keys_do_not_share_limits(clock):
    limiter = Limiter(clock)
    assert admitted(limiter, ApiKey("anna", requests_per_minute=1)) is None
    assert admitted(limiter, ApiKey("anna", requests_per_minute=1))
    assert admitted(limiter, ApiKey("ben", requests_per_minute=1)) is None


def test_a_key_whose_limits_change_keeps_its_counts(clock):
    limiter = Limiter(clock)
    for _ in range(3):
        assert admitted(limiter, ApiKey("anna", requests_per_minute=3)) is None
    assert admitted(limiter, ApiKey("anna", requests_per_minute=2))
    assert admitted(limiter, ApiKey("anna", requests_per_minute=4)) is None


def test_limits_over_http(tmp_path):
    path = tmp_path / "keys.json"
    secret = add_key(path, ApiKey("anna", requests_per_minute=3, tokens_per_minute=50, requests_at_once=1))
    server = GuardedServer(keys=KeyFile(path))
    with server.running() as address, client(address, secret) as http:
        answer = http.post("/v1/echo", json={"tokens": 30, "used": 20})
        assert answer.headers["x-ratelimit-remaining-requests"] == "2"
        assert answer.headers["x-ratelimit-limit-tokens"] == "50"
        slow = threading.Thread(target=lambda: http.post("/v1/slow", json={"seconds": 0.5}))
        slow.start()
        assert wait_for(lambda: server.guard.running)
        busy = http.post("/v1/echo", json={})
        assert (busy.status_code, busy.headers["retry-after"]) == (429, "1")
        assert "requests at once: limit 1" in busy.json()["error"]["message"]
        slow.join()
        much = http.post("/v1/echo", json={"tokens": 40})
        assert (much.status_code, much.json()["error"]["type"]) == (429, "tokens")
        over = http.post("/v1/echo", json={})
        assert (over.status_code, over.json()["error"]["type"]) == (429, "requests")
        assert 1 <= int(over.headers["retry-after"]) <= 60
        assert http.get("/health").status_code == 200


def test_a_key_that_has_its_answer_may_ask_again(tmp_path):
    """A client with one request at a time asks again the moment it has the last byte, and is not refused."""
    path, after = tmp_path / "keys.json", []
    secret = add_key(path, ApiKey("anna", requests_at_once=1))
    server = GuardedServer(keys=KeyFile(path))
    headers = [(b"host", b"127.0.0.1"), (b"authorization", f"Bearer {secret}".encode())]
    scope = {"type": "http", "method": "POST", "path": "/v1/echo", "query_string": b"", "headers": headers}
    parts = [{"type": "http.request", "body": b"{}", "more_body": False}]

    async def receive():
        if parts:
            return parts.pop()
        return await asyncio.Event().wait()

    async def send(message):
        if message["type"] == "http.response.body" and not message.get("more_body"):
            server.guard.limiter.admit(KeyFile(path).identify(secret.encode())).close(0)
            after.append(message["body"])

    asyncio.run(server.guard({**scope, "client": ("127.0.0.1", 1), "http_version": "1.1"}, receive, send))
    assert after == [b'{"bytes":2}']
