"""`deltatune serve`: its screen, answers, end, and what it refuses before a model is loaded."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest

from deltatune.cli.commands import serve as serve_command
from deltatune.cli.ui.serve_screen import show_started
from deltatune.serving.server.guard.guards import Guarding
from deltatune.store.adapter_store import AdapterStore
from support import models
from support.command_line import ran
from support.served import TASKS, Served, chat_tokenizer, tiny_llama, write_adapters


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, two adapters of it, and a store of them."""
    folder = tmp_path_factory.mktemp("serve")
    model = tiny_llama()
    model.save_pretrained(folder / "model")
    chat_tokenizer().save_pretrained(folder / "model")
    model.config._name_or_path = str(folder / "model")
    write_adapters(folder / "adapters", {name: TASKS[name] for name in ("plain", "sst2")}, model)
    AdapterStore(folder / "store").add_all(folder / "adapters")
    return folder


@pytest.fixture(scope="module")
def other_store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("other")
    model = models.tiny("llama", "lm", dropout=False, seed=9)
    write_adapters(folder / "adapters", {"alien": TASKS["plain"]}, model)
    AdapterStore(folder / "store").add_all(folder / "adapters")
    return folder / "store"


class Process:
    """`deltatune serve` in a process of its own."""

    def __init__(self, *argv):
        words = [sys.executable, "-m", "deltatune", "serve", *map(str, argv)]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
        self.screen = ""
        while "python -c" not in self.screen:
            line = self.process.stdout.readline()
            if not line:
                raise AssertionError(self.process.communicate())
            self.screen += line
        self.address = re.search(r"http://127\.0\.0\.1:\d+", self.screen).group()

    def end(self, *signals):
        for number in signals:
            self.process.send_signal(number)
            time.sleep(0.2)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


@pytest.mark.slow
def test_a_store_is_served_until_a_signal(folder):
    process = Process("--model", folder / "model", "--store", folder / "store", "--port", 0, "--precision", "float32")
    try:
        assert "LlamaForCausalLM" in process.screen
        assert re.search(r"adapters +2: plain, sst2", process.screen)
        assert "programs of this machine may call" in process.screen
        command = re.search(r"curl .*", process.screen).group()
        ran_curl = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
        assert json.loads(ran_curl.stdout)["choices"][0]["text"]
        line = re.search(r'python -c "(.*)"', process.screen).group(1)
        ran_line = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, timeout=60)
        assert (ran_line.returncode, bool(ran_line.stdout.strip())) == (0, True)
        answer = httpx.post(f"{process.address}/v1/classify", json={"model": "sst2", "input": "good"}, trust_env=False)
        assert answer.json()["data"][0]["label"] in ("good", "bad")
    finally:
        code, out, err = process.end(signal.SIGTERM)
    assert (code, out.strip()) == (0, "stopped")
    assert all(json.loads(line)["event"] for line in err.splitlines())
    assert "once upon" not in err.lower()


@pytest.mark.slow
def test_single_adapters_and_keys(folder):
    keys = folder / "keys.json"
    secret = ran("keys", "add", keys, "ann", "--adapters", "mine").out.split()[-1]
    process = Process("--adapter", f"mine={folder / 'adapters' / 'plain'}", "--adapter", folder / "adapters" / "sst2",
                      "--port", 0, "--keys", keys, "--precision", "float32")  # fmt: skip
    try:
        assert "1 key in" in process.screen
        assert "mine, sst2" in process.screen
        with httpx.Client(base_url=process.address, trust_env=False) as client:
            assert client.get("/v1/models").status_code == 401
            client.headers["Authorization"] = f"Bearer {secret}"
            assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["mine"]
            assert client.post("/v1/classify", json={"model": "sst2", "input": "good"}).status_code == 404
    finally:
        code, _, err = process.end(signal.SIGINT)
    assert code == 0
    assert secret not in err


@pytest.mark.parametrize(
    ("tasks", "example"),
    [
        (["plain", "sst2"], "/v1/completions"),
        (["sst2"], "/v1/classify"),
        pytest.param(["ner"], "/v1/tag", marks=pytest.mark.slow),
        pytest.param(["squad"], "/v1/answer", marks=pytest.mark.slow),
    ],
)
def test_the_screen_shows_how_to_try_an_adapter(tmp_path, capsys, tasks, example):
    served = Served(write_adapters(tmp_path, {name: TASKS[name] for name in tasks}))
    with served.running():
        show_started(served.service, "org/tiny", served.address, Guarding(), local=False)
        screen = capsys.readouterr().out
        assert f"adapters   {len(tasks)}: {', '.join(tasks)}" in screen
        assert "whoever reaches the address may call" in screen
        path, body = re.search(r"curl http://[\d.:]+(\S+) .* -d '(.*)'", screen).groups()
        assert path == example
        assert served.post(path, **json.loads(body))
        line = re.search(r'python -c "(.*)"', screen).group(1)
        exec(line, {})
        assert capsys.readouterr().out.strip()


def refused(*argv):
    result = ran("serve", *argv)
    assert result.code == 2, result
    assert result.out == ""
    return result.err


def test_what_is_refused_before_a_model_is_loaded(folder, tmp_path, monkeypatch):
    store, model = folder / "store", folder / "model"
    assert "nothing says which adapters are served: give --store DIR" in refused("--model", model)
    assert "there is no store" in refused("--model", model, "--store", tmp_path / "none")
    assert "exclude each other" in refused("--store", store, "--adapter", folder / "adapters" / "plain")
    assert "anyone who reaches this address" in refused("--store", store, "--host", "0.0.0.0")
    assert "does not exist" in refused("--store", store, "--keys", tmp_path / "keys.json")
    assert "ports are numbers" in refused("--store", store, "--port", "70000")
    assert "must be one of" in refused("--store", store, "--precision", "float16")
    assert "no option --prot, did you mean '--port'?" in refused("--store", store, "--prot", "1")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"cannot listen on 127.0.0.1 port {port}" in refused("--store", store, "--port", port)
    assert "adapter" in refused("--adapter", tmp_path / "nowhere", "--port", "0")
    monkeypatch.setattr(serve_command, "find_spec", lambda name: None if name == "uvicorn" else object())
    assert 'the server needs uvicorn: pip install "deltatune[serve]"' in refused("--store", store)


def test_a_store_of_another_base_is_refused(folder, other_store):
    error = refused("--model", folder / "model", "--store", other_store, "--port", "0")
    assert "none of the 1 adapters" in error
    assert "--other-base" in error


def test_the_store_may_be_a_variable(folder, monkeypatch):
    monkeypatch.setenv("DELTATUNE_STORE", str(folder / "nothing"))
    assert f"there is no store {folder / 'nothing'}" in refused("--model", folder / "model")
