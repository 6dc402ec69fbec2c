"""Requests that end early, find no room or fail: the engine goes on, and nothing of them stays."""

import asyncio
import math
import random
import threading
import time

import pytest
import torch

from deltatune import DeltatuneError
from deltatune.serving.engine.engine_limits import EngineLimits
from deltatune.serving.engine.requests import DoneEvent, GenerateRequest, RowsRequest, Sampling, TokenEvent
from deltatune.serving.serving_errors import CannotServe, EngineStopped, QueueFull, RequestTooLong, UnknownAdapter
from support.serving_engine import answers, offline, random_requests, running, serving_host, settled

ENDLESS = Sampling(max_tokens=120)


def request(*prompt, adapters=None, timeout=None, **sampling):
    return GenerateRequest(prompt or (7, 8), adapters or {}, Sampling(**{"max_tokens": 4, **sampling}), timeout)


@pytest.fixture
def engine():
    with running(serving_host(methods={"lora": "LoRA(r=4)", "prefix": "Prefix(length=3)"})) as made:
        yield made


def hold(engine, count=1):
    """Keep the worker from its next turn until the returned event is set."""
    held, entered = threading.Event(), threading.Event()
    engine.call(lambda host: (entered.set(), held.wait(30)))
    assert entered.wait(30)
    return held


def is_idle(engine):
    statistics = settled(engine)
    lanes = engine._worker.lanes.values()
    assert not any(lane.jobs for lane in lanes)
    assert all(lane.cache.bytes == 0 for lane in lanes)
    assert all(engine.residency.pins(name) == 0 for name in engine.residency.resident)
    return statistics.queued == statistics.running == 0


def test_a_cancelled_row_leaves_and_the_others_go_on(engine):
    others = random_requests(5, [{}, {"lora": 1.0}], new=20)
    held = hold(engine)
    ticket = engine.submit(GenerateRequest((7, 8), {"prefix": 1.0}, ENDLESS))
    tickets = [engine.submit(other) for other in others]
    held.set()
    events = iter(ticket)
    assert isinstance(next(events), TokenEvent)
    ticket.cancel()
    *_, last = events
    assert isinstance(last, DoneEvent)
    assert last.reason == "cancelled"
    got = [each.result(60).ids for each in tickets]
    assert is_idle(engine)
    assert engine.statistics().cancelled == 1
    assert got == [offline(engine.host, other) for other in others]


def test_a_request_is_cancelled_while_it_waits(engine):
    held = hold(engine)
    ticket = engine.submit(request())
    ticket.cancel()
    held.set()
    assert ticket.result(30).done.reason == "cancelled"
    assert is_idle(engine)


def test_deadlines_end_running_and_waiting_requests(engine):
    started = time.monotonic()
    ticket = engine.submit(GenerateRequest((7, 8), {}, Sampling(max_tokens=100, temperature=1.0), timeout=0.05))
    slow = hold(engine)
    waiting = engine.submit(request(timeout=0.05))
    time.sleep(0.1)
    slow.set()
    assert waiting.result(30).done.reason == "timeout"
    assert ticket.result(30).done.reason in ("timeout", "length")
    assert time.monotonic() - started < 20
    assert is_idle(engine)
    assert engine.statistics().timed_out >= 1


def test_a_full_queue_refuses_and_then_takes_requests_again():
    with running(serving_host(methods={}), EngineLimits(queue=3, cache_bytes=1 << 26)) as engine:
        held = hold(engine)
        tickets = [engine.submit(request()) for _ in range(3)]
        with pytest.raises(QueueFull, match="3 requests wait"):
            engine.submit(request())
        held.set()
        for ticket in tickets:
            assert ticket.result(30).done.reason == "length"
        assert engine.submit(request()).result(30).done.reason == "length"
        assert engine.statistics().refused == 1


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_a_slow_engine_takes_no_more_requests_than_its_queue_holds(kind):
    host = serving_host(kind, {})
    with running(host, EngineLimits(rows=1, queue=2, cache_bytes=1 << 26)) as engine:
        tickets = []

        def submit(count):
            for _ in range(count):
                tickets.append(engine.submit(GenerateRequest((7, 8), {}, Sampling(max_tokens=60))))

        with pytest.raises(QueueFull):
            submit(30)
        assert 2 <= len(tickets) < 10
        assert all(len(ticket.result(60).ids) == 60 for ticket in tickets)


def test_a_model_without_positions_has_a_limit_too():
    limits = EngineLimits(request_tokens=50, cache_bytes=1 << 26)
    with running(serving_host("t5", {}), limits) as engine, pytest.raises(RequestTooLong, match="at most 50"):
        engine.submit(request(*range(5, 55)))


def test_wrong_limits_are_named():
    with pytest.raises(DeltatuneError, match=r"(?s)rows must be.*at least 1, not 0.*queue"):
        EngineLimits(rows=0, queue=True)


def test_an_adapter_of_weight_zero_does_not_act():
    host = serving_host(methods={"prompt": "Prompt(length=3)", "reft": "LoReFT(r=2, first=2)"})
    with running(host) as engine:
        plain, *zero = answers(engine, [request(), *(request(adapters={name: 0.0}) for name in host.adapters)])
    assert zero == [plain] * 2


def test_wrong_requests_are_refused_with_everything_that_is_wrong(engine):
    with pytest.raises(DeltatuneError, match=r"(?s)temperature.*top_p.*max_tokens.*prompt"):
        engine.submit(GenerateRequest((), {}, Sampling(temperature=-1, top_p=2, max_tokens=0)))
    with pytest.raises(UnknownAdapter, match="no adapter is called 'lorra', did you mean 'lora'"):
        engine.submit(request(adapters={"lorra": 1.0}))
    with pytest.raises(RequestTooLong, match="maximum context length is 128 tokens"):
        engine.submit(request(*range(5, 95), max_tokens=60))
    with pytest.raises(DeltatuneError, match="101 is no token of this model"):
        engine.submit(request(101))  # a virtual id of somebody's prompt
    with pytest.raises(DeltatuneError, match="weight of adapter 'lora'"):
        engine.submit(request(adapters={"lora": float("nan")}))
    for weight in (10**400, 1e300, -math.inf):  # beyond what a float32 holds
        with pytest.raises(DeltatuneError, match="weight of adapter 'lora'"):
            engine.submit(request(adapters={"lora": weight}))
    for wrong in ({"temperature": 10**400}, {"logit_bias": {5: 10**400}}):
        with pytest.raises(DeltatuneError, match=next(iter(wrong))):
            engine.submit(request(**wrong))
    with pytest.raises(DeltatuneError, match="timeout must be"):
        engine.submit(request(timeout=10**400))
    with pytest.raises(DeltatuneError, match="no rows"):
        engine.submit(RowsRequest([], {"lora": 1.0}))
    with pytest.raises(CannotServe, match="attached by hand"):
        engine.residency.unload("lora")
    assert is_idle(engine)


def test_a_prefix_takes_positions_from_the_prompt(engine):
    fits = request(*range(5, 95), adapters={"prefix": 1.0}, max_tokens=35)
    assert len(engine.submit(fits).result(30).ids) == 35
    with pytest.raises(RequestTooLong, match="the adapter takes 3"):
        engine.submit(request(*range(5, 95), adapters={"prefix": 1.0}, max_tokens=36)).result(30)


def test_keys_and_values_stay_within_their_bytes():
    host = serving_host(methods={})
    limits = EngineLimits(cache_bytes=256 * 60, prompt_cache=False)  # 60 tokens
    with running(host, limits) as engine:
        with pytest.raises(RequestTooLong, match="bytes of keys and values"):
            engine.submit(request(*range(5, 50), max_tokens=20))
        requests = random_requests(20, [{}], new=10, longest=40)
        assert answers(engine, requests) == [offline(host, each) for each in requests]


def test_an_adapter_with_values_that_are_no_numbers_fails_alone(engine):
    def spoil(host):
        with torch.no_grad():
            host.trainable("prefix")[0][1].fill_(float("nan"))

    engine.call(spoil).result(30)
    good = random_requests(8, [{}, {"lora": 1.0}], new=12)
    bad = random_requests(4, [{"prefix": 1.0}], new=12)
    held = hold(engine)
    tickets = [(each, engine.submit(each)) for pair in zip(good, [*bad, *bad], strict=True) for each in pair]
    held.set()
    for each, ticket in tickets:
        if each in good:
            ticket.result(60)
        else:
            with pytest.raises(DeltatuneError, match="not finite"):
                ticket.result(60)
    assert is_idle(engine)
    assert engine.statistics().failed == 8
    assert answers(engine, good) == [offline(engine.host, each) for each in good]


def test_a_pass_that_fails_is_repeated_row_by_row(engine):
    calls = []

    def break_(host):
        delta = next(delta for _, _, delta in host.adapters["lora"].entries())
        add = delta.add

        def fail(h, x, weight=1.0):
            calls.append(len(h))
            if len(calls) > 2:  # after the prompt and one step
                raise RuntimeError("broken adapter")
            return add(h, x, weight)

        delta.add = fail

    engine.call(break_).result(30)
    good = random_requests(4, [{}, {"prefix": 1.0}], new=12)
    held = hold(engine)
    tickets = [engine.submit(each) for each in good]
    bad = engine.submit(GenerateRequest((7, 8), {"lora": 1.0}, ENDLESS))
    held.set()
    with pytest.raises(RuntimeError, match="broken adapter"):
        bad.result(60)
    got = [ticket.result(60).ids for ticket in tickets]
    assert len(calls) == 4, "the row was to fail with others, and then alone"
    assert is_idle(engine)
    assert got == [offline(engine.host, each) for each in good]


def test_a_worker_that_dies_leaves_no_client_waiting(engine):
    held = hold(engine)
    ticket = engine.submit(request())

    def die():
        raise SystemExit

    engine._worker._admit = die
    held.set()
    with pytest.raises(EngineStopped, match="failed"):
        ticket.result(30)
    deadline = time.monotonic() + 10
    while engine.alive and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not engine.alive
    with pytest.raises(EngineStopped):
        engine.submit(request())
    with pytest.raises(EngineStopped):
        engine.call(lambda host: None)


def test_draining_ends_what_runs_and_takes_nothing_new(engine):
    ticket = engine.submit(GenerateRequest((7, 8), {}, ENDLESS))
    assert not engine.drain(0)
    with pytest.raises(EngineStopped, match="draining"):
        engine.submit(request())
    assert engine.drain(60)
    assert len(ticket.result(0).ids) == 120
    assert engine.alive


def test_closing_ends_everything(engine):
    tickets = [engine.submit(GenerateRequest((7, 8), {}, ENDLESS)) for _ in range(3)]
    engine.close()
    engine.close()
    assert {ticket.result(0).done.reason for ticket in tickets} <= {"cancelled", "length"}
    assert not engine.alive


def test_events_reach_readers_of_an_event_loop(engine):
    async def read(ticket):
        return [event async for event in ticket]

    async def both():
        return await asyncio.gather(*(read(engine.submit(request(max_tokens=5))) for _ in range(3)))

    for events in asyncio.run(both()):
        assert [type(event) for event in events] == [TokenEvent] * 5 + [DoneEvent]


def test_stop_tokens_end_a_row_and_are_not_reported(engine):
    free = engine.submit(request(9, 9, max_tokens=12)).result(30).ids
    stop = free[5]
    result = engine.submit(request(9, 9, max_tokens=12, stop_ids=frozenset({stop}))).result(30)
    assert result.ids == free[: free.index(stop)]
    assert (result.done.reason, result.done.stop_id) == ("stop", stop)


def test_penalties_and_bias_change_what_is_chosen(engine):
    plain = engine.submit(request(9, 9, max_tokens=30)).result(30).ids
    assert len(set(plain)) < 30
    once = engine.submit(request(9, 9, max_tokens=30, presence_penalty=100.0)).result(30).ids
    assert len(set(once)) == 30
    biased = engine.submit(request(9, 9, logit_bias={50: 90.0})).result(30).ids
    assert biased == [50] * 4
    assert 50 not in engine.submit(request(9, 9, max_tokens=30, logit_bias={50: -100.0})).result(30).ids
    assert engine.submit(request(9, 9, max_tokens=30, repetition_penalty=5.0)).result(30).ids != plain


def test_top_k_top_p_and_min_p_leave_few_tokens(engine):
    greedy = engine.submit(request(9, 9, max_tokens=8)).result(30).ids
    for narrow in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}, {"temperature": 1e-6}):
        options = {"temperature": 5.0, "seed": 3, **narrow}
        assert engine.submit(request(9, 9, max_tokens=8, **options)).result(30).ids == greedy, narrow


@pytest.mark.slow
def test_a_minute_of_random_load_leaves_nothing_behind():
    host = serving_host()
    names = [name for name in host.adapters]
    limits = EngineLimits(rows=12, pass_tokens=64, queue=40, cache_bytes=256 * 3000, prompt_cache_bytes=200_000)
    problems, ends = [], []
    with running(host, limits) as engine:
        until = time.monotonic() + 60

        def client(seed):
            draw = random.Random(seed)
            while time.monotonic() < until and not problems:
                weights = {name: draw.choice([1.0, 0.5, -0.3]) for name in draw.sample(names, draw.randint(0, 2))}
                prompt = tuple(draw.randrange(5, 100) for _ in range(draw.randint(2, 60)))
                wanted = GenerateRequest(
                    prompt, weights, Sampling(max_tokens=draw.randint(1, 40)), timeout=draw.choice([None, None, 0.02])
                )
                try:
                    ticket = engine.submit(wanted)
                except QueueFull:
                    time.sleep(0.01)
                    continue
                if draw.random() < 0.2:
                    time.sleep(draw.random() / 50)
                    ticket.cancel()
                try:
                    result = ticket.result(60)
                except Exception as error:
                    problems.append(error)
                    return
                ends.append((wanted, result))

        clients = [threading.Thread(target=client, args=(seed,)) for seed in range(16)]
        for each in clients:
            each.start()
        for each in clients:
            each.join()
        assert not problems
        assert is_idle(engine)
        assert engine.statistics().prompt_cache_bytes <= limits.prompt_cache_bytes
    finished = [(wanted, result) for wanted, result in ends if result.done.reason == "length"]
    assert len(finished) > 200
    for wanted, result in random.Random(0).sample(finished, 100):
        assert result.ids == offline(host, wanted)
