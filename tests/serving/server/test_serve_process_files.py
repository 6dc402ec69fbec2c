"""`deltatune serve` as a process while its store changes: damaged files, adapters replaced and removed, full disks."""

import os
import resource
import signal
import subprocess
import sys
import threading

import pytest

from deltatune.store.adapter_store import AdapterStore
from support.guarded_server import wait_for
from support.serve_process import Answers, Asking, serving, text_of, write_all

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def offline(folder):
    return Answers(folder)


@pytest.fixture
def store(folder, tmp_path):
    AdapterStore(tmp_path / "store").add_all(folder / "adapters")
    return tmp_path / "store"


def command(*words):
    done = subprocess.run(
        [sys.executable, "-m", "deltatune", "store", *map(str, words)], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def object_of(store, name):
    """The file with the tensors of a stored adapter."""
    digest = AdapterStore(store).entry(name).digest
    return next(path for path in store.rglob("*.safetensors") if digest in str(path))


def damage(path):
    """Other values in the middle of a file, as a failing disk leaves them."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    os.chmod(path, 0o644)
    path.write_bytes(bytes(content))


def test_a_damaged_adapter_fails_its_own_requests_until_it_is_added_anew(folder, offline, store):
    damage(object_of(store, "plain"))
    object_of(store, "bottle").unlink()
    cut = object_of(store, "ia3")
    os.chmod(cut, 0o644)
    os.truncate(cut, 20)
    with serving(store.parent, store, model=folder / "model") as server:
        names = ("plain", "prefix", "base", "bottle", "ia3", "prefix")
        answers = Asking(12, lambda place: server.ask(names[place % 6], 100)).wait(60)
        for place, answer in enumerate(answers):
            name = names[place % 6]
            if name in ("prefix", "base"):
                assert text_of(answer) == offline.text(name, 100)
            else:
                assert answer.status_code == 503, answer.text
                assert answer.json()["error"]["code"] == "adapter_unavailable"
        told = [event for event in server.events() if event["event"] == "adapter"]
        assert {event["model"] for event in told} == {"plain", "bottle", "ia3"}
        assert all(event["problem"] for event in told)
        AdapterStore(store).add_all(folder / "adapters", replace=True)
        for name in ("plain", "bottle", "ia3"):
            assert text_of(server.ask(name, 100)) == offline.text(name, 100)
        server.events()
        assert server.end() == 0


def test_files_damaged_while_an_adapter_is_in_memory(folder, offline, store):
    with serving(store.parent, store, model=folder / "model") as server:
        assert text_of(server.ask("plain", 20)) == offline.text("plain", 20)
        running = Asking(3, lambda place: text_of(server.ask(("plain", "ia3", "base")[place], 600)))
        assert wait_for(lambda: server.metric("engine_running") == 3, 20)
        damage(object_of(store, "plain"))
        with server.client() as http:
            reloaded = http.post("/v1/adapters/plain/reload")
            assert reloaded.status_code == 503, reloaded.text
            assert reloaded.json()["error"]["code"] == "adapter_unavailable"
        assert running.wait(100) == [offline.text(name, 600) for name in ("plain", "ia3", "base")]
        assert text_of(server.ask("ia3", 20)) == offline.text("ia3", 20)
        AdapterStore(store).add(folder / "adapters" / "plain", replace=True)
        with server.client() as http:
            assert http.post("/v1/adapters/plain/reload").status_code == 200
        assert text_of(server.ask("plain", 20)) == offline.text("plain", 20)
        server.events()
        assert server.end() == 0


def test_adapters_removed_and_replaced_while_they_answer(folder, offline, store):
    with serving(store.parent, store, model=folder / "model") as server:
        running = Asking(4, lambda place: text_of(server.ask(("plain", "bottle")[place % 2], 500)))
        assert wait_for(lambda: server.metric("engine_running") == 4, 20)
        opened = AdapterStore(store)
        opened.remove("bottle")
        opened.add(folder / "second" / "plain", replace=True)
        assert server.metric("engine_running") == 4
        assert server.ask("bottle", 20).status_code == 404
        later = text_of(server.ask("plain", 20))
        assert later == offline.text("plain", 20, "second") != offline.text("plain", 20)
        assert running.wait(100) == [offline.text(("plain", "bottle")[place % 2], 500) for place in range(4)]
        command("add", folder / "adapters" / "bottle", "--store", store)
        assert text_of(server.ask("bottle", 20)) == offline.text("bottle", 20)
        server.events()
        assert server.end() == 0


def test_an_adapter_is_replaced_again_and_again_under_load(folder, offline, store):
    both = {offline.text("plain", 30), offline.text("plain", 30, "second")}
    others = {name: offline.text(name, 30) for name in ("ia3", "prefix")}
    with serving(store.parent, store, "--adapters-in-memory", 2, model=folder / "model") as server:
        stop, seen = threading.Event(), set()

        def ask(place):
            with server.client() as http:
                while not stop.is_set():
                    name = "plain" if place % 2 else ("ia3", "prefix")[place // 2 % 2]
                    text = text_of(server.ask(name, 30, http))
                    assert text in (both if name == "plain" else {others[name]})
                    seen.add(text)
            return "good"

        asking = Asking(8, ask)
        opened = AdapterStore(store)
        for turn in range(40):
            opened.add(folder / ("second", "adapters")[turn % 2] / "plain", "plain", replace=True)
            server.metric("engine_running")
        stop.set()
        assert asking.wait(60) == ["good"] * 8
        assert both <= seen
        assert text_of(server.ask("plain", 30)) == offline.text("plain", 30)
        assert server.end() == 0


def test_a_store_that_goes_away_and_comes_back(folder, offline, store):
    with serving(store.parent, store, model=folder / "model") as server:
        assert text_of(server.ask("plain", 20)) == offline.text("plain", 20)
        running = Asking(2, lambda place: text_of(server.ask("plain", 600)))
        assert wait_for(lambda: server.metric("engine_running") == 2, 20)
        away = store.rename(store.parent / "away")
        assert text_of(server.ask("base", 20)) == offline.text("base", 20)
        for name in ("plain", "ia3", "nobody"):
            answer = server.ask(name, 20)
            assert answer.status_code in (200, 404, 503), answer.text
            if answer.status_code == 200:
                assert text_of(answer) == offline.text(name, 20)
        with server.client() as http:
            assert http.get("/health").status_code == 200
            assert http.get("/v1/models").status_code in (200, 503)
        assert not store.exists()  # no second store is made
        assert running.wait(60) == [offline.text("plain", 600)] * 2
        away.rename(store)
        for name in ("plain", "ia3"):
            assert text_of(server.ask(name, 20)) == offline.text(name, 20)
        server.events()
        assert server.end() == 0


def test_a_disk_that_is_full_while_the_store_changes(folder, offline, store):
    def small():
        """Files of this process end at 4 KiB: its index cannot be written."""
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    with serving(store.parent, store, before=small, log="/dev/null", model=folder / "model") as server:
        assert text_of(server.ask("plain", 20)) == offline.text("plain", 20)
        AdapterStore(store).add_all(folder / "second", replace=True)
        assert text_of(server.ask("ia3", 20)) == offline.text("ia3", 20)
        assert text_of(server.ask("plain", 20)) == offline.text("plain", 20, "second")
        assert text_of(server.ask("other", 20)) == offline.text("other", 20, "second")
        assert server.end() == 0
