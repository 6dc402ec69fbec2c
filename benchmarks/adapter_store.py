"""A store of ten thousand adapters: added, known again from nothing, listed, searched, served at random; 256 read and
put into a bank.

The small adapters are LoRA r=2 on one map of each of two layers, each with values of its own; the 256 are LoRA r=8 on
all 42 linear maps of a Llama with d=384 and 6 layers. `deltatune serve` has 64 of the ten thousand in memory at once.
"""

from __future__ import annotations

import json
import random
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaModel

import deltatune
from benchmarks.measure import ALL_LINEARS, Clock, append, clock_of, options
from benchmarks.serve_command import serve_command
from benchmarks.served_questions import open_base, word_tokenizer, write_base, written
from deltatune.serving.engine.requests import Sampling
from deltatune.store.adapter_store import AdapterStore
from deltatune.store.atomic_files import MANIFEST, digest
from deltatune.tasks import Classify, Generate

TASKS = {
    "reviews": Classify(labels=("bad", "good")),
    "stories": Generate(),
    "letters": Generate(),
    "answers": Generate(),
}
"""Names of the small adapters begin with these."""
MOST = {"add": 60.0, "rebuild": 60.0, "read, verified anew": 2.0}
"""Seconds that are allowed."""


def main() -> None:
    arguments = options("adapter_store", adapters=10_000, read=256, served_seconds=60)
    clock, folder = clock_of(arguments), Path(tempfile.mkdtemp(prefix="store-benchmark-"))
    try:
        base = write_base(folder / "base", width=64, layers=2)
        seconds = thousands(folder, open_base(base), arguments.adapters, clock)
        served = served_at_random(folder, base, arguments.served_seconds, arguments.threads)
        seconds |= many_read(folder, arguments.read, clock)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"\nadapter_store, {arguments.adapters:,} adapters; {arguments.read} read\n")
    for what, value in seconds.items():
        bound = f", at most {MOST[what]:g} s: {'yes' if value <= MOST[what] else 'NO'}" if what in MOST else ""
        print(f"{what:44}{1e3 * value:12.2f} ms{bound}")
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"peak memory {peak / 1e6:.0f} MB")
    print(", ".join(f"{what} {value:g}" for what, value in served.items()))
    append(arguments, {"benchmark": "adapter_store", "seconds": seconds, "served": served, "peak_bytes": peak})


def thousands(folder: Path, host: deltatune.Host, number: int, clock: Clock) -> dict[str, float]:
    """Seconds of all that is done with the whole store."""
    copies(template(folder / "small", host, deltatune.LoRA(r=2, sites="*.attn.q")), folder / "new", number)
    place = folder / "store"
    store = AdapterStore(place)
    seconds = {"add": timed(lambda: store.add_all(folder / "new"), clock)}
    seconds["add again, all there"] = timed(lambda: store.add_all(folder / "new"), clock)
    store.close()
    for path in place.glob("index.sqlite*"):
        path.unlink()
    seconds["rebuild"] = timed(lambda: len(AdapterStore(place)), clock)
    seconds["open, indexed"] = timed(lambda: len(AdapterStore(place)), clock)
    store = AdapterStore(place)
    assert len(store) == number
    names = random.Random(0).sample(store.names(), 200)
    seconds["entry of a name"] = timed(lambda: [store.entry(name) for name in names], clock) / len(names)
    seconds["list, the best 20 of a task"] = timed(lambda: store.list(task="classify", sort="score", limit=20), clock)
    seconds["search, two words"] = timed(lambda: store.search("answers 77", limit=50), clock)
    seconds["list all"] = timed(lambda: store.list(), clock)
    seconds["read a random one"] = timed(lambda: [store.read(name) for name in names], clock) / len(names)
    seconds["add one"] = timed(lambda: store.add(folder / "small", "one"), clock)
    seconds["remove one"] = timed(lambda: store.remove("one"), clock)
    shutil.rmtree(folder / "new")
    return seconds


def many_read(folder: Path, number: int, clock: Clock) -> dict[str, float]:
    """Seconds of reading adapters and writing them into a bank."""
    model = LlamaModel(LlamaConfig(hidden_size=384, intermediate_size=1024, num_hidden_layers=6, vocab_size=1000))
    host = deltatune.Host(model)
    copies(template(folder / "large", host, deltatune.LoRA(r=8, sites=ALL_LINEARS)), folder / "many", number)
    store = AdapterStore(folder / "many-store")
    store.add_all(folder / "many")
    names = store.names()
    store.close()
    for path in (folder / "many-store").glob("index.sqlite*"):
        path.unlink()
    store = AdapterStore(folder / "many-store")
    len(store)
    seconds = {"read, verified anew": timed(lambda: [store.read(name) for name in names], clock)}
    seconds["read, verified before"] = timed(lambda: [store.read(name) for name in names], clock)
    bank, stored = host.bank(slots=number), [store.read(name) for name in names]
    seconds["put into the bank"] = timed(
        lambda: [s.put_into(bank, n) for s, n in zip(stored, names, strict=True)], clock
    )
    one = AdapterStore(folder / "many-store")
    bank.remove(names[0])
    seconds["a cold adapter, read and put"] = timed(lambda: one.read(names[0]).put_into(bank, names[0]), clock)
    return seconds


def served_at_random(folder: Path, base: Path, seconds: int, threads: int, clients: int = 16) -> dict[str, float]:
    """Clients that each ask another adapter every time; answers compared with those of the adapters alone."""
    place = folder / "store"
    names = [entry.name for entry in AdapterStore(place).list(task="generate")]
    options = ["--model", str(base), "--store", str(place), "--precision", "float32", "--adapters-in-memory", "64"]
    host, compared = open_base(base), random.Random(1).sample(names, min(20, len(names)))
    with serve_command(folder, options, threads) as server, httpx.Client(timeout=120, trust_env=False) as http:

        def ask(name: str) -> tuple[float, str]:
            body = {"model": name, "prompt": [5, 8, 13], "max_tokens": 8, "temperature": 0, "ignore_eos": True}
            begun = time.perf_counter()
            answer = http.post(f"{server.address}/v1/completions", json=body)
            if answer.status_code != 200:
                raise RuntimeError(f"{name}: {answer.text}\n{server.log.read_text()[-3000:]}")
            return time.perf_counter() - begun, answer.json()["choices"][0]["text"]

        def client(number: int) -> list[float]:
            draw = random.Random(number)
            return [ask(draw.choice(names))[0] for _ in iter(lambda: time.perf_counter() < until, False)]

        ask("base")
        memory, until = [server.memory()], time.perf_counter() + seconds
        with ThreadPoolExecutor(clients) as pool:
            asked = [pool.submit(client, number) for number in range(clients)]
            while time.perf_counter() < until:
                time.sleep(1.0)
                memory.append(server.memory())
            taken = sorted(value for each in asked for value in each.result())
        listing = timed(lambda: http.get(f"{server.address}/v1/models").raise_for_status(), time.perf_counter)
        wrong = sum(ask(name)[1] != alone(host, place, name) for name in compared)
        numbers = server.metrics()
    return {
        "served at random": len(taken),
        "wrong of 20": wrong,
        "p50 ms": 1e3 * statistics.median(taken),
        "p95 ms": 1e3 * taken[int(0.95 * (len(taken) - 1))],
        "listing ms": 1e3 * listing,
        "evictions": numbers["evictions_total"],
        "memory at first MB": memory[0] / 1e6,
        "after a third MB": memory[len(memory) // 3] / 1e6,
        "at the end MB": memory[-1] / 1e6,
    }


def alone(host: deltatune.Host, place: Path, name: str) -> str:
    """The answer of a stored adapter without a server."""
    AdapterStore(place).read(name).attach_to(host, name)
    sampling = Sampling(max_tokens=8, temperature=0.0, ignore_eos=True)
    ids, _ = written(host, {name: 1.0}, [5, 8, 13], sampling)
    host.detach(name)
    return str(word_tokenizer().decode(ids, skip_special_tokens=True))


def template(folder: Path, host: deltatune.Host, method: deltatune.Method) -> Path:
    """An adapter's folder."""
    host.attach("template", method, head=False)
    host.save("template", folder, extra={"task": Generate().to_json(), "scores": {"test": {"accuracy": 0.5}}})
    host.detach("template")
    return folder


def copies(source: Path, target: Path, number: int) -> None:
    """Folders like one, each with values, a task and a score of its own."""
    config, tensors = json.loads((source / "adapter.json").read_text()), load_file(source / "adapter.safetensors")
    files = [path for path in source.iterdir() if path.name.startswith("adapter_")]
    drawn, hashes = random.Random(0), {path.name: digest(path) for path in files}
    for i in range(number):
        name = list(TASKS)[i % len(TASKS)]
        folder = target / f"{name}-{i:05}"
        folder.mkdir(parents=True)
        config["extra"] = {
            "task": TASKS[name].to_json(),
            "scores": {"test": {"accuracy": drawn.random()}},
        }
        (folder / "adapter.json").write_text(json.dumps(config))
        changed = {name: tensor + torch.tensor(1e-3 * i) for name, tensor in tensors.items()}
        save_file(changed, folder / "adapter.safetensors")
        for path in files:
            shutil.copy(path, folder)
        own = {name: digest(folder / name) for name in ("adapter.json", "adapter.safetensors")}
        (folder / MANIFEST).write_text(json.dumps({"files": {**hashes, **own}}))


def timed(work: Callable[[], object], clock: Clock) -> float:
    start = clock()
    work()
    return clock() - start


if __name__ == "__main__":
    main()
