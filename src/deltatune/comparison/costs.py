"""What an adapter costs at inference, against the bare base: time and arithmetic of one batch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from deltatune.core.folding import obstacles
from deltatune.core.host import Host

REPEATS = 9


@dataclass(frozen=True)
class Costs:
    """Inference with the adapter against the bare base, the head left out of both."""

    latency_ratio: float
    """Live: median time over the bare model's, runs of both taking turns."""
    latency_ratio_folded: float | None
    """Folded into the weights; None where the method has no weight form."""
    extra_flops: float
    """More arithmetic a row than the bare base when served as cheaply as it can be: folded where it folds."""


def inference_costs(host: Host, name: str, batch: dict[str, Tensor], bfloat16: bool) -> Costs:
    """Measure one adapter on one batch (B rows)."""
    rows = len(batch["input_ids"])
    route = host.route
    training = host.model.training
    host.model.eval()
    try:
        run = _runner(host, batch, bfloat16)
        live = _ratio(lambda: host.use(name), lambda: host.use(None), run)
        flops = _flops(host, name, run) - _flops(host, None, run)
        folded = _folded(host, name, run) if not obstacles(host.adapters[name]) else None
    finally:
        host.model.train(training)
        host.use(dict(route.uniform) if route.rows is None else list(route.rows))
    return Costs(live, folded, 0.0 if folded is not None else max(0.0, flops / rows))


def _runner(host: Host, batch: dict[str, Tensor], bfloat16: bool) -> Callable[[], object]:
    extra = {"decoder_input_ids": batch["input_ids"]} if host.sites.facts.encoder_decoder else {}

    @torch.no_grad()
    def run() -> object:
        with torch.autocast(batch["input_ids"].device.type, torch.bfloat16, enabled=bfloat16):
            return host.model(**batch, **extra)

    return run


def _folded(host: Host, name: str, run: Callable[[], object]) -> float:
    def fold() -> None:
        host.use(name)
        host.fold_(name)

    def unfold() -> None:
        if name in host.folded:
            host.unfold_(name)
        host.use(None)

    try:
        return _ratio(fold, unfold, run)
    finally:
        unfold()


def _ratio(first: Callable[[], None], second: Callable[[], None], run: Callable[[], object]) -> float:
    """Median of pairwise time ratios, the two taking turns so that a drifting machine hits both."""
    pairs = []
    for repeat in range(REPEATS + 1):
        times = []
        for prepare in (first, second):
            prepare()
            _wait()
            start = time.perf_counter()
            run()
            _wait()
            times.append(time.perf_counter() - start)
        if repeat:  # the first pair warms up
            pairs.append(times[0] / times[1])
    return statistics.median(pairs)


def _flops(host: Host, name: str | None, run: Callable[[], object]) -> float:
    host.use(name)
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
