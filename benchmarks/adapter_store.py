"""A store of ten thousand adapters: added, known again from nothing, listed, searched; 256 read and put into a bank.

The small adapters are LoRA r=2 on one map of each of two layers, each with values of its own; the 256 are LoRA r=8 on
all 42 linear maps of a Llama with d=384 and 6 layers.
"""

from __future__ import annotations

import json
import random
import resource
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaModel

import deltatune
from benchmarks.measure import ALL_LINEARS, Clock, append, clock_of, options
from deltatune.store.adapter_store import AdapterStore
from deltatune.store.atomic_files import MANIFEST, digest

TASKS = ("classify", "tag", "generate", "span")
MOST = {"add": 60.0, "rebuild": 60.0, "read, verified anew": 2.0}
"""Seconds that are allowed."""


def main() -> None:
    arguments = options("adapter_store", adapters=10_000, read=256)
    clock, folder = clock_of(arguments), Path(tempfile.mkdtemp(prefix="store-benchmark-"))
    try:
        seconds = thousands(folder, arguments.adapters, clock) | many_read(folder, arguments.read, clock)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"\nadapter_store, {arguments.adapters:,} adapters; {arguments.read} read\n")
    for what, value in seconds.items():
        bound = f", at most {MOST[what]:g} s: {'yes' if value <= MOST[what] else 'NO'}" if what in MOST else ""
        print(f"{what:44}{1e3 * value:12.2f} ms{bound}")
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"peak memory {peak / 1e6:.0f} MB")
    append(arguments, {"benchmark": "adapter_store", "seconds": seconds, "peak_bytes": peak})


def thousands(folder: Path, number: int, clock: Clock) -> dict[str, float]:
    """Seconds of all that is done with the whole store."""
    copies(template(folder / "small", small_model(), deltatune.LoRA(r=2, sites="*.attn.q")), folder / "new", number)
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
    seconds["list, the best 20 of a task"] = timed(lambda: store.list(task="tag", sort="score", limit=20), clock)
    seconds["search, two words"] = timed(lambda: store.search("span 77", limit=50), clock)
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


def small_model() -> deltatune.Host:
    return deltatune.Host(
        LlamaModel(LlamaConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=2, vocab_size=64))
    )


def template(folder: Path, host: deltatune.Host, method: deltatune.Method) -> Path:
    """An adapter's folder."""
    host.attach("template", method, head=False)
    extra = {"task": {"task": "classify"}, "scores": {"test": {"accuracy": 0.5}}}
    host.save("template", folder, extra=extra)
    host.detach("template")
    return folder


def copies(source: Path, target: Path, number: int) -> None:
    """Folders like one, each with values, a task and a score of its own."""
    config, tensors = json.loads((source / "adapter.json").read_text()), load_file(source / "adapter.safetensors")
    files = [path for path in source.iterdir() if path.name.startswith("adapter_")]
    drawn, hashes = random.Random(0), {path.name: digest(path) for path in files}
    for i in range(number):
        folder = target / f"{TASKS[i % len(TASKS)]}-{i:05}"
        folder.mkdir(parents=True)
        config["extra"] = {
            "task": {"task": TASKS[i % len(TASKS)], "metric": "accuracy"},
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
