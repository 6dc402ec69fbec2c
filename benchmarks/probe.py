"""Epochs of a linear probe: the first computes and caches the base's features, later ones train on the cache."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise

import deltatune
from benchmarks.measure import append, options
from deltatune.data import read
from deltatune.models.loading import load_backbone
from deltatune.tasks import Classify, Head
from deltatune.training import Settings, encode_for, train
from deltatune.training.scaling.feature_cache import CACHE, set_cache_limit


def main() -> None:
    arguments = options("probe", rows=600, epochs=4)
    stored, computed = (epochs(arguments.rows, arguments.epochs, cached) for cached in (True, False))
    print(f"\nprobe: {arguments.rows} rows\n{'epoch':>8}{'features cached':>18}{'recomputed':>16}{'':>4}")
    for i, (cached, recomputed) in enumerate(zip(stored, computed, strict=True), 1):
        print(f"{i:8}{cached:16.3f} s{recomputed:14.3f} s{recomputed / cached:8.1f} x")
    ratio = sum(computed[1:]) / sum(stored[1:])
    print(f"from the second epoch on: {ratio:.0f} times as fast, at least 10: {'yes' if ratio >= 10 else 'NO'}")
    append(arguments, {"benchmark": "probe", "stored": stored, "computed": computed, "ratio": ratio})


def epochs(rows: int, count: int, cached: bool) -> list[float]:
    """Seconds of each epoch; the first includes computing the features, if they are cached."""
    CACHE.clear_()
    set_cache_limit("auto" if cached else None)
    data = read("python-docs", limit=rows)
    model, tokenizer = load_backbone("builtin")
    host = deltatune.Host(model)
    task = Classify(data.labels, data.text, data.label, max_length=128)
    host.attach("probe", deltatune.Probe(), head=Head(task.head_config(model.config)))
    encoded = encode_for(host, "probe", task, data.train, tokenizer)
    steps = -(-len(encoded) // Settings().batch_size)
    times = [time.perf_counter()]

    def on_step(step: int, total: int, loss: float, rate: float) -> None:
        if step % steps == 0:
            times.append(time.perf_counter())

    train(host, "probe", task, encoded, None, tokenizer, Settings(epochs=count), on_step=on_step)
    return differences(times)


def differences(times: Sequence[float]) -> list[float]:
    return [after - before for before, after in pairwise(times)]


if __name__ == "__main__":
    main()
