"""`deltatune serve` as a process, for tests that kill it, stop its clients and damage its files."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import torch

import deltatune
from deltatune.tasks import Generate
from support import models
from support.served import TASKS, chat_tokenizer, write_adapters

ADAPTERS = {
    "plain": TASKS["plain"],
    "ia3": TASKS["plain-ia3"],
    "bottle": ("Bottleneck(size=4)", Generate(max_length=64, new_tokens=8)),
    "prefix": ("Prefix(length=3)", Generate(max_length=64, new_tokens=8)),
    "sst2": TASKS["sst2"],
}
PROMPT = "the film is good"
WRITERS = ("plain", "ia3", "bottle", "prefix", "base")


def long_llama():
    """A tiny Llama with room for long answers."""
    return models.tiny("llama", "lm", dropout=False, max_position_embeddings=2048)


def write_all(folder):
    """A model, adapters, and another version of "plain" in `folder`."""
    model = long_llama()
    model.save_pretrained(folder / "model")
    chat_tokenizer().save_pretrained(folder / "model")
    model.config._name_or_path = str(folder / "model")
    write_adapters(folder / "adapters", ADAPTERS, model)
    write_adapters(folder / "second", {"other": TASKS["plain"], "plain": ("LoRA(r=3)", TASKS["plain"][1])}, model)
    return folder


class Answers:
    """Greedy answers that `host.generate` gives, each computed once."""

    def __init__(self, folder):
        self.folder, self.host, self.tokenizer = folder, deltatune.Host(long_llama()), chat_tokenizer()
        self.known = {}

    def text(self, name, tokens, place="adapters"):
        key = (place, name, tokens)
        if key not in self.known:
            route = None if name == "base" else "now"
            if route:
                self.host.load(self.folder / place / name, name="now")
            ids = torch.tensor([self.tokenizer(PROMPT)["input_ids"][:-1]])
            with self.host.using(route, training=False):
                out = self.host.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False,
                    eos_token_id=10**6, pad_token_id=0,
                )  # fmt: skip
            if route:
                self.host.detach("now")
            self.known[key] = self.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        return self.known[key]


class ServeProcess:
    """A running `deltatune serve`; what it says is in files, so that nothing waits for a reader."""

    def __init__(self, folder, store, *argv, log=None, name="serve", before=None, model=None):
        self.out, self.log = folder / f"{name}.out", Path(log or folder / f"{name}.log")
        words = ["serve", "--model", model or folder / "model", "--store", store, "--precision", "float32"]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
        with open(self.out, "w") as out, open(self.log, "w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "deltatune", *map(str, [*words, "--port", 0, *argv])],
                stdout=out,
                stderr=err,
                env=env,
                preexec_fn=before,
            )
        self.address = self._address()

    def _address(self):
        until = time.monotonic() + 120
        while time.monotonic() < until and self.process.poll() is None:
            if found := re.search(r"http://127\.0\.0\.1:\d+", self.out.read_text()):
                return found.group()
            time.sleep(0.05)
        raise AssertionError(self.out.read_text() + self.log.read_text())

    def client(self, seconds=60):
        return httpx.Client(base_url=self.address, timeout=seconds, trust_env=False)

    def ask(self, name, tokens, http=None, **more):
        """The response to a greedy request of so many tokens."""
        body = {"model": name, "prompt": PROMPT, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, **more}
        if http is not None:
            return http.post("/v1/completions", json=body)
        with self.client() as own:
            return own.post("/v1/completions", json=body)

    def metric(self, name):
        with self.client() as http:
            return float(re.search(rf"^deltatune_{name} (\S+)$", http.get("/metrics").text, re.M).group(1))

    def events(self):
        """The lines of its log; all of them are JSON, so none is a traceback."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def signal(self, number):
        self.process.send_signal(number)

    def end(self, seconds=60):
        """Its exit code after SIGTERM."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        return self.process.wait(seconds)


@contextlib.contextmanager
def serving(*argv, **more):
    process = ServeProcess(*argv, **more)
    try:
        yield process
    finally:
        process.process.kill()
        process.process.wait()


def text_of(response):
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["text"]


class Asking:
    """Threads that each do something; what they return, or the error that ended them."""

    def __init__(self, count, act):
        self.results = [None] * count
        self.threads = [threading.Thread(target=self._run, args=(place, act)) for place in range(count)]
        for thread in self.threads:
            thread.start()

    def _run(self, place, act):
        try:
            self.results[place] = act(place)
        except Exception as error:
            self.results[place] = error

    def wait(self, seconds=60):
        """The results. Fails if they take longer."""
        until = time.monotonic() + seconds
        for thread in self.threads:
            thread.join(max(0.0, until - time.monotonic()))
            assert not thread.is_alive(), "a request hangs"
        return self.results
