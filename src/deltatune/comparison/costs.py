"""What an adapter costs at inference, against the bare base: time and arithmetic of one batch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from deltatune.comparison.plan import Plan
from deltatune.core.host import Host
from deltatune.core.merging import obstacles
from deltatune.models.hardware import uses_bfloat16
from deltatune.tasks.collator import Collate
from deltatune.tasks.generation import Generate
from deltatune.tasks.task import TokenRow
from deltatune.tasks.tokenization import padding_id
from deltatune.training.inference.batches import device_of
from deltatune.training.inference.decoding import generation_config, no_habits
from deltatune.training.inference.prediction import collate_on

ROWS = 16
REPEATS = 9
WRITINGS = 3
WRITTEN = 16
"""Tokens that are written to measure how long writing takes."""


@dataclass(frozen=True)
class Costs:
    """Inference with the adapter against the bare base, the head left out of both."""

    latency_ratio: float
    """Live: median time over the bare model's, runs of both taking turns."""
    latency_ratio_merged: float | None
    """Merged into the weights; None where the method has no weight form."""
    extra_flops: float
    """More arithmetic a row than the bare base when served as cheaply as it can be: merged where it merges."""
    writing_ratio: float | None = None
    """Live: time to write on, with cache, over the bare model's; None where nothing is written."""


def costs_of(plan: Plan, name: str) -> Costs:
    """Measure an adapter of a plan's host on test rows of middling length."""
    host, test = plan.host, plan.splits["test"]
    bfloat16 = uses_bfloat16(host.model, plan.settings.precision)
    batch = collate_on(host, name, plan.tokenizer, test)(_middling(test.rows))
    batch = {key: tensor.to(device_of(host)) for key, tensor in batch.items() if key != "labels"}
    write = _writer(plan, plan.task, bfloat16) if isinstance(plan.task, Generate) else None
    return inference_costs(host, name, batch, bfloat16, write)


def _writer(plan: Plan, task: Generate, bfloat16: bool) -> Callable[[], object]:
    """Writes WRITTEN tokens after each of some test prompts, be they what they may: every method writes as many."""
    host, tokenizer = plan.host, plan.tokenizer
    given = [fact["prompt"] for fact in plan.splits["test"].facts or ()]
    prompts = _middling([{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in given])
    left = not host.sites.facts.encoder_decoder
    batch = Collate({"input_ids": padding_id(tokenizer), "attention_mask": 0}, left=left)(prompts)
    batch = {key: tensor.to(device_of(host)) for key, tensor in batch.items()}
    config = generation_config(
        host,
        replace(task, new_tokens=WRITTEN, max_length=2 * WRITTEN, temperature=0.0),
        tokenizer,
        task.stops(tokenizer),
    )
    config.min_new_tokens = WRITTEN

    @torch.no_grad()
    def run() -> object:
        with torch.autocast(batch["input_ids"].device.type, torch.bfloat16, enabled=bfloat16), no_habits(host.model):
            return host.generate(**batch, generation_config=config)

    return run


def _middling(rows: Sequence[TokenRow]) -> list[TokenRow]:
    ordered = sorted(rows, key=lambda row: len(row["input_ids"]))
    start = max(0, len(ordered) // 2 - ROWS // 2)
    return ordered[start : start + ROWS]


def inference_costs(
    host: Host, name: str, batch: dict[str, Tensor], bfloat16: bool, write: Callable[[], object] | None = None
) -> Costs:
    """Measure one adapter on one batch (B rows), and `write`, which writes texts, where there is one."""
    rows = len(batch["input_ids"])
    with host.using(None, training=False):
        run = _runner(host, batch, bfloat16)
        live = _ratio(lambda: host.use(name), lambda: host.use(None), run)
        flops = _flops(host, name, run) - _flops(host, None, run)
        merged = _merged_ratio(host, name, run) if not obstacles(host.adapters[name]) else None
        writing = _ratio(lambda: host.use(name), lambda: host.use(None), write, WRITINGS) if write else None
    return Costs(live, merged, 0.0 if merged is not None else max(0.0, flops / rows), writing)


def _runner(host: Host, batch: dict[str, Tensor], bfloat16: bool) -> Callable[[], object]:
    extra = {"decoder_input_ids": batch["input_ids"]} if host.sites.facts.encoder_decoder else {}

    @torch.no_grad()
    def run() -> object:
        with torch.autocast(batch["input_ids"].device.type, torch.bfloat16, enabled=bfloat16):
            return host.model(**batch, **extra)

    return run


def _merged_ratio(host: Host, name: str, run: Callable[[], object]) -> float:
    def merge() -> None:
        host.use(name)
        host.merge_(name)

    def unmerge() -> None:
        if name in host.merged:
            host.unmerge_(name)
        host.use(None)

    try:
        return _ratio(merge, unmerge, run)
    finally:
        unmerge()


def _ratio(
    first: Callable[[], None], second: Callable[[], None], run: Callable[[], object], repeats: int = REPEATS
) -> float:
    """Median of pairwise time ratios, the two taking turns so that a drifting machine hits both."""
    pairs = []
    for repeat in range(repeats + 1):
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
