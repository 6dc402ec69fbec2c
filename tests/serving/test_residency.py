"""Adapters of a store come into memory as requests need them, and go; requests notice nothing but the time."""

import threading
import time

import pytest
import torch

import deltatune
from deltatune import DeltatuneError
from deltatune.serving.engine.engine_limits import EngineLimits
from deltatune.serving.engine.requests import GenerateRequest, Sampling, TokenEvent
from deltatune.serving.residency import Residency
from deltatune.serving.serving_errors import CannotServe, UnknownAdapter
from deltatune.store.adapter_store import AdapterStore
from support.language_models import randomize_
from support.serving_engine import answers, offline, running, serving_host, settled

METHODS = {
    "one": "LoRA(r=4)",
    "two": "LoRA(r=3)",
    "three": "Prefix(length=3)",
    "four": "Prompt(length=2)",
    "five": "Bottleneck(size=4)",
    "six": "MAM(size=4, length=2)",
}


def write(folder, method, seed, **config):
    """A folder with an adapter of random values for the base of these tests."""
    host = serving_host(methods={}, **config)
    host.attach("a", deltatune.parse(method), seed=seed, head=False)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        for _, parameter in host.trainable("a"):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    host.save("a", folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder with a folder for each adapter."""
    made = tmp_path_factory.mktemp("adapters")
    for seed, (name, method) in enumerate(METHODS.items()):
        write(made / name, method, seed)
    return made


@pytest.fixture
def store(tmp_path, folders):
    made = AdapterStore(tmp_path / "store")
    made.add_all(folders)
    return made


def request(adapter, *prompt, new=8, **more):
    weights = {adapter: 1.0} if isinstance(adapter, str) else adapter
    return GenerateRequest(prompt or (7, 8, 9), weights, Sampling(max_tokens=new), **more)


def expected(folders, wanted):
    """The tokens of a request on a host that has its adapters attached from the folders they came from."""
    host = serving_host(methods={})
    for name in wanted.adapters:
        host.load(folders / name, name=name)
    host.use(None)
    return offline(host, wanted)


def test_adapters_are_loaded_as_requests_name_them_and_the_oldest_make_room(store, folders):
    host = serving_host(methods={})
    requests = [request(name, 7, 8, 5 + i) for i in range(2) for name in METHODS]
    requests.append(request({"one": 0.3, "five": 0.5}))
    with running(host, residency=Residency(host, store, adapters=2)) as engine:
        got = answers(engine, requests)
        statistics = settled(engine)
        assert len(statistics.resident) <= 2
        assert len(host.adapters) <= 2
    assert got == [expected(folders, each) for each in requests]
    assert statistics.loads >= 6
    assert statistics.evictions >= 3
    assert statistics.loading_seconds > statistics.attaching_seconds > 0


def test_adapters_with_a_bank_form_are_in_the_bank(store):
    host = serving_host(methods={})
    with running(host, residency=Residency(host, store)) as engine:
        answers(engine, [request(name) for name in METHODS])
        assert set(settled(engine).resident) == set(METHODS)
        assert {"one", "two"} <= set(host.bank().names)
        assert "six" not in host.bank().names or host.bank().can_hold(deltatune.parse(METHODS["six"]))


def test_an_unknown_adapter_is_named_with_the_nearest(store):
    host = serving_host(methods={})
    with running(host, residency=Residency(host, store)) as engine, pytest.raises(UnknownAdapter, match="three"):
        engine.submit(request("threee"))


def slow_row(engine, adapter):
    """A row that generates, after its first token, and its events."""
    events = iter(engine.submit(request(adapter, new=100)))
    assert isinstance(next(events), TokenEvent)
    return events


def test_a_removed_adapter_finishes_what_has_begun(store, folders):
    host = serving_host(methods={})
    with running(host, residency=Residency(host, store)) as engine:
        events = slow_row(engine, "one")
        store.remove("one")
        with pytest.raises(UnknownAdapter):
            engine.submit(request("one"))
        rest = [event.token for event in events if isinstance(event, TokenEvent)]
        got = answers(engine, [request("two")])
    assert rest == expected(folders, request("one", new=100))[1:]
    assert got == [expected(folders, request("two"))]


def test_a_replaced_adapter_is_new_for_new_requests_alone(store, folders, tmp_path):
    old = expected(folders, request("one", new=100))
    host = serving_host(methods={})
    prompt = tuple(range(5, 45))  # long enough for the prompt cache
    with running(host, residency=Residency(host, store)) as engine:
        before = engine.submit(request("one", *prompt)).result(60).ids
        events = slow_row(engine, "one")
        store.add(write(tmp_path / "one", "LoRA(r=6)", 77), "one", replace=True)
        new = engine.submit(request("one", *prompt)).result(60)
        rest = [event.token for event in events if isinstance(event, TokenEvent)]
        assert settled(engine).resident == ("one",)
        assert list(host.adapters) != []
        assert len(host.adapters) == 1, "the replaced adapter has stayed"
    assert rest == old[1:]
    assert new.done.timings.cached_tokens == 0
    assert new.ids == expected(tmp_path, request("one", *prompt)) != before


def test_a_damaged_adapter_fails_its_own_requests(store, folders):
    host = serving_host(methods={})
    file = store.object_folder("three") / "adapter.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 0xFF
    file.chmod(0o644)
    file.write_bytes(bytes(content))
    with running(host, residency=Residency(host, store)) as engine:
        tickets = [engine.submit(request(name)) for name in ("three", "one", "three", "two")]
        for ticket in tickets[::2]:
            with pytest.raises(DeltatuneError, match=r"three|damaged"):
                ticket.result(60)
        assert [ticket.result(60).ids for ticket in tickets[1::2]] == [
            expected(folders, request(name)) for name in ("one", "two")
        ]
        assert settled(engine).failed == 2
        store.add(folders / "three", "three", replace=True)
        assert answers(engine, [request("three")]) == [expected(folders, request("three"))]


def test_an_adapter_of_another_base_is_refused_in_words(store, folders, tmp_path):
    host = serving_host(methods={})
    store.add(write(tmp_path / "foreign", "LoRA(r=4)", 5, intermediate_size=40), "foreign")
    with running(host, residency=Residency(host, store)) as engine:
        with pytest.raises(DeltatuneError, match="does not fit this model"):
            engine.submit(request("foreign")).result(60)
        with pytest.raises(DeltatuneError, match="does not fit this model"):
            engine.residency.load("foreign").result(60)
        assert answers(engine, [request("one")]) == [expected(folders, request("one"))]
        assert "foreign" not in host.adapters


class SlowStore:
    """A store that waits before it reads."""

    def __init__(self, store):
        self.store, self.go = store, threading.Event()

    def __contains__(self, name):
        return name in self.store

    def revision(self, name):
        return self.store.revision(name)

    def read(self, name):
        if name == "two":
            assert self.go.wait(30)
        return self.store.read(name)


def test_reading_an_adapter_stops_no_row(store, folders):
    host, slow = serving_host(methods={}), SlowStore(store)
    with running(host, residency=Residency(host, slow)) as engine:
        cold = engine.submit(request("two"))
        warm = engine.submit(request("one", new=50)).result(60)
        assert cold.done is None
        slow.go.set()
        assert cold.result(60).ids == expected(folders, request("two"))
    assert warm.ids == expected(folders, request("one", new=50))


def test_a_request_times_out_and_is_cancelled_while_its_adapter_is_read(store):
    host, slow = serving_host(methods={}), SlowStore(store)
    with running(host, residency=Residency(host, slow)) as engine:
        late, gone = engine.submit(request("two", timeout=0.05)), engine.submit(request("two"))
        gone.cancel()
        assert late.result(30).done.reason == "timeout"
        assert gone.result(30).done.reason == "cancelled"
        slow.go.set()


def test_a_worker_waits_for_files_with_any_deadline(store, folders):
    """Longer than the system can wait at once."""
    host, slow = serving_host(methods={}), SlowStore(store)
    with running(host, residency=Residency(host, slow)) as engine:
        ticket = engine.submit(request("two", timeout=1e12))
        with pytest.raises(TimeoutError):
            ticket.result(0.2)
        assert engine.alive
        slow.go.set()
        assert ticket.result(1e12).ids == expected(folders, request("two"))


def test_adapters_in_use_keep_their_room_and_others_get_theirs_in_turn(store, folders):
    host = serving_host(methods={})
    order, lock = [], threading.Lock()

    def ask(engine, name, count):
        for _ in range(count):
            got = engine.submit(request(name, new=20)).result(60).ids
            with lock:
                order.append((name, got))

    with running(host, residency=Residency(host, store, adapters=1)) as engine:
        clients = [threading.Thread(target=ask, args=(engine, "one", 12)) for _ in range(3)]
        clients.append(threading.Thread(target=ask, args=(engine, "three", 2)))
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        with pytest.raises(CannotServe, match="at most 1"):
            engine.submit(request({"one": 0.5, "two": 0.5}))
    places = [place for place, (name, _) in enumerate(order) if name == "three"]
    assert places[-1] < len(order) - 6, "the other adapter waited for all requests of the first"
    wanted = {name: expected(folders, request(name, new=20)) for name in ("one", "three")}
    assert all(got == wanted[name] for name, got in order)


def test_who_finds_no_room_lets_requests_for_adapters_in_memory_pass(store, folders):
    host = serving_host(methods={})
    residency = Residency(host, store, adapters=1)
    with running(host, residency=residency) as engine:
        residency.wish(["three"])
        residency._readings["three"].stored.result(30)  # so that it waits for room alone
        slow = engine.submit(request("one", new=120))
        events = iter(slow)
        assert isinstance(next(events), TokenEvent)
        stuck = engine.submit(request("three"))
        passing = engine.submit(request("one", 9, 8, 7, new=2))
        assert passing.result(60).ids == expected(folders, request("one", 9, 8, 7, new=2))
        assert slow.done is None, "it waited for the request that runs"
        assert stuck.done is None
        assert stuck.result(60).ids == expected(folders, request("three"))
        assert slow.result(60).done.reason == "length"


def test_those_who_pass_leave_the_other_its_turn(store, folders):
    host = serving_host(methods={})
    residency, count = Residency(host, store, adapters=1), 0
    with running(host, residency=residency) as engine:
        residency.wish(["three"])
        residency._readings["three"].stored.result(30)
        first, *going = [engine.submit(request("one", new=new)) for new in (40, 13, 17, 23, 29)]
        assert isinstance(next(iter(first)), TokenEvent)
        stuck = engine.submit(request("three"))
        while stuck.done is None and count < 60:  # at any time some request uses the adapter in memory
            going.pop(0).result(60)
            count += 1
            going.append(engine.submit(request("one", new=11 + 7 * count % 20)))
        assert stuck.result(60).ids == expected(folders, request("three"))
    assert count < 30


def test_load_unload_and_reload(store, folders):
    host = serving_host(methods={"mine": "LoRA(r=4)"})
    residency = Residency(host, store)
    with running(host, residency=residency) as engine:
        residency.load("one").result(30)
        assert residency.find("one").requests == 0
        first = residency.find("one").number
        residency.load("one").result(30)
        assert residency.find("one").number == first
        residency.reload("one").result(30)
        assert residency.find("one").number != first
        assert answers(engine, [request("one")]) == [expected(folders, request("one"))]
        assert residency.find("one").requests == 1
        residency.unload("one").result(30)
        assert residency.find("one") is None
        assert set(host.adapters) == {"mine"}
        with pytest.raises(UnknownAdapter):
            residency.unload("one")
        with pytest.raises(UnknownAdapter):
            residency.load("seven")
        assert answers(engine, [request("one")]) == [expected(folders, request("one"))]
        randomize_(host, "mine")
        assert residency.resident[-1] == "one"
    assert answers_of_hand(host) == offline(host, request("mine"))


def answers_of_hand(host):
    with running(host) as engine:
        return answers(engine, [request("mine")])[0]


def test_an_order_that_nobody_waits_for_is_carried_out(store):
    """A client that goes while its adapter is read cancels what it waits for."""
    host, slow = serving_host(methods={}), SlowStore(store)
    residency = Residency(host, slow)
    with running(host, residency=residency) as engine:
        assert not engine.residency.load("one").cancel()
        slow.go.set()
        engine.residency.load("one").result(30)
        slow.go.clear()
        last = engine.residency.load("two")
        last.cancel()
    slow.go.set()
    assert isinstance(last.exception(0), DeltatuneError)  # the engine was closed first
    assert residency._readers._shutdown


def test_unloading_waits_for_requests_that_use_the_adapter(store, folders):
    host = serving_host(methods={})
    with running(host, residency=Residency(host, store)) as engine:
        events = slow_row(engine, "one")
        engine.residency.unload("one").result(30)
        rest = [event.token for event in events if isinstance(event, TokenEvent)]
        settled(engine)
        assert not host.adapters
    assert rest == expected(folders, request("one", new=100))[1:]


@pytest.mark.slow
def test_three_hundred_adapters_at_random_stay_within_their_room(tmp_path):
    store = AdapterStore(tmp_path / "store")
    for number in range(300):
        store.add(write(tmp_path / f"a{number}", "LoRA(r=2)", number), f"a{number}")
    host = serving_host(methods={})
    with running(host, EngineLimits(cache_bytes=1 << 26), Residency(host, store, adapters=16)) as engine:
        started = time.monotonic()
        numbers = [(7 * i * i + 3 * i) % 300 for i in range(400)]
        got = answers(engine, [request(f"a{number}", new=4) for number in numbers], seconds=120)
        assert time.monotonic() - started < 120
        assert len(host.adapters) <= 16
    for i in range(0, 400, 37):
        assert got[i] == expected(tmp_path, request(f"a{numbers[i]}", new=4))
