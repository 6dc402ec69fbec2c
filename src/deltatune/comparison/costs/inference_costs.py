"""Inference costs of an adapter relative to the bare base: latency and arithmetic of one batch."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from deltatune.comparison.costs.inference_timing import TimedRun, act, forward_pass, times_in_turns
from deltatune.core.adapter import Adapter
from deltatune.core.host import Host
from deltatune.core.merging import merge_obstacles
from deltatune.methods.prompts.prefix import KeyValues
from deltatune.models.hardware import uses_bfloat16
from deltatune.tasks.collator import PaddingCollator
from deltatune.tasks.generation import Generate
from deltatune.tasks.in_context_generation import GenerateInContext
from deltatune.tasks.label_words.label_words import LabelWords
from deltatune.tasks.label_words.prompt_batches import SCORED
from deltatune.tasks.mixture import MixtureEncoded
from deltatune.tasks.reasoning import Reason
from deltatune.tasks.task import Encoded, TokenRow, row_length
from deltatune.tasks.tokenization import padding_id
from deltatune.training.forward import read_first
from deltatune.training.inference.batches import device_of
from deltatune.training.inference.decoding import generation_config, without_generation_defaults
from deltatune.training.inference.prediction import adapter_collator
from deltatune.training.session import Session

ROWS = 16
"""Rows of the batch."""
REPEATS = 9
GENERATION_REPEATS = 3
NEW_TOKENS = 16
"""Tokens to generate when the latency of generation is measured."""


@dataclass(frozen=True)
class Costs:
    """Inference with the adapter relative to the bare base; the head is left out of both."""

    latency_ratio: float
    """Unmerged: median of the latency divided by the bare model's, measured in turns."""
    latency_ratio_merged: float | None
    """The same after merging into the weights; None for methods that cannot be merged."""
    extra_flops: float
    """FLOPs per row beyond the bare base's when served as cheaply as possible: merged if the method can be."""
    tokens: int = 0
    """Tokens by which prompts and prefixes make each text longer: virtual tokens, and keys in front of the text's."""
    writing_ratio: float | None = None
    """Unmerged: latency of generation with a cache divided by the bare model's; None for other tasks."""


def costs_of(session: Session, test: Encoded, plain: Encoded | None = None) -> Costs:
    """Measure the attached adapter on test rows of median length.

    plain: the same rows without a prompt, which the bare base reads; by default `test` itself.
    """
    if isinstance(session.task, LabelWords) and plain is not None:
        return _prompt_costs(session, test, plain)
    if isinstance(session.task, (Reason, GenerateInContext)) and plain is not None:
        return _prompt_costs(session, _prompts_alone(test), _prompts_alone(plain))
    if isinstance(test, MixtureEncoded):  # the part with the most rows stands for all
        test = max(test.parts.values(), key=len)
    host = session.host
    bfloat16 = uses_bfloat16(host.model, session.precision)
    batch = adapter_collator(host, session.name, session.tokenizer, test)(_median_rows(test.rows))
    batch = {key: tensor.to(device_of(host)) for key, tensor in batch.items() if key != "labels"}
    generate = _generator(session, session.task, test, bfloat16) if isinstance(session.task, Generate) else None
    return inference_costs(host, session.name, batch, bfloat16, generate)


def _prompts_alone(encoded: Encoded) -> Encoded:
    """The prompts of rows that texts are generated for, without their answers."""
    prompts = [fact["prompt"] for fact in encoded.facts or ()]
    return Encoded([{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in prompts], facts=encoded.facts)


def _prompt_costs(session: Session, test: Encoded, plain: Encoded) -> Costs:
    """A prompt and its adapter against the bare base that reads the rows alone."""
    host, bfloat16 = session.host, uses_bfloat16(session.host.model, session.precision)
    pieces = len(test) // max(1, test.examples)
    numbers = _median_numbers(plain.rows)
    prompted = [row for number in numbers for row in test.rows[number * pieces : (number + 1) * pieces]]
    batches = []
    for rows, encoded in ((prompted, test), ([plain.rows[number] for number in numbers], plain)):
        batch = adapter_collator(host, session.name, session.tokenizer, encoded)(rows)
        kept = {name: tensor for name, tensor in batch.items() if name not in ("labels", "decoder_ids", *SCORED)}
        batches.append({name: tensor.to(device_of(host)) for name, tensor in kept.items()})
    with host.using(None, training=False):
        prompt, bare = (forward_pass(host, batch, bfloat16) for batch in batches)
        latency = _ratio(host, session.name, prompt, bare)
        flops = _flops(host, session.name, prompt) - _flops(host, None, bare)
    length = sum(len(row["input_ids"]) for row in prompted) / len(numbers)
    added = length - sum(len(plain.rows[number]["input_ids"]) for number in numbers) / len(numbers)
    extra = max(0.0, flops / len(numbers))
    placed = isinstance(session.task, LabelWords) and session.task.has_virtual_tokens
    tokens = round(added) + (0 if placed else added_tokens(session.adapter))
    return Costs(latency, None, extra, tokens)


def _generator(session: Session, task: Generate, test: Encoded, bfloat16: bool) -> Callable[[], object]:
    """Generates exactly NEW_TOKENS tokens after some test prompts: every method generates as many."""
    host, tokenizer = session.host, session.tokenizer
    prompt_ids = [fact["prompt"] for fact in test.facts or ()]
    prompts = _median_rows([{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in prompt_ids])
    left = not host.sites.facts.encoder_decoder
    batch = PaddingCollator({"input_ids": padding_id(tokenizer), "attention_mask": 0}, left=left)(prompts)
    batch = {key: tensor.to(device_of(host)) for key, tensor in batch.items()}
    config = generation_config(
        host,
        replace(task, new_tokens=NEW_TOKENS, max_length=task.max_length + 2 * NEW_TOKENS, temperature=0.0),
        tokenizer,
        task.stops(tokenizer),
    )
    config.min_new_tokens = NEW_TOKENS

    @torch.no_grad()
    def run() -> object:
        with (
            torch.autocast(batch["input_ids"].device.type, torch.bfloat16, enabled=bfloat16),
            without_generation_defaults(host.model),
        ):
            return host.generate(**batch, generation_config=config)

    return run


def _median_rows(rows: Sequence[TokenRow]) -> list[TokenRow]:
    """ROWS rows from the middle of the order by length."""
    return [rows[number] for number in _median_numbers(rows)]


def _median_numbers(rows: Sequence[TokenRow]) -> list[int]:
    ordered = sorted(range(len(rows)), key=lambda number: row_length(rows[number]))
    start = max(0, len(ordered) // 2 - ROWS // 2)
    return ordered[start : start + ROWS]


def inference_costs(
    host: Host, name: str, batch: dict[str, Tensor], bfloat16: bool, generate: Callable[[], object] | None = None
) -> Costs:
    """Measure one adapter on one batch of B rows, and `generate`, which generates texts, if there is one."""
    rows = len(read_first(batch))
    with host.using(None, training=False):
        run = forward_pass(host, batch, bfloat16)
        unmerged = _ratio(host, name, run, run)
        flops = _flops(host, name, run) - _flops(host, None, run)
        merged = _merged_ratio(host, name, run) if not merge_obstacles(host.adapters[name]) else None
        generation = None
        if generate is not None:
            generation = _ratio(host, name, generate, generate, repeats=GENERATION_REPEATS)
    extra = 0.0 if merged is not None else max(0.0, flops / rows)
    return Costs(unmerged, merged, extra, added_tokens(host.adapters[name]), generation)


def added_tokens(adapter: Adapter) -> int:
    """Tokens by which an adapter makes each text longer for the model's attention; 0 for LoRA and most others."""
    keys = [len(module.prefix()[0]) for module in adapter.modules() if isinstance(module, KeyValues)]
    return adapter.needs.virtual_tokens + max(keys, default=0)


def _merged_ratio(host: Host, name: str, run: Callable[[], object]) -> float:
    try:
        return _ratio(host, name, run, run, merged=True)
    finally:
        act(host, None)


def _ratio(
    host: Host,
    name: str,
    with_adapter: Callable[[], object],
    bare: Callable[[], object],
    merged: bool = False,
    repeats: int = REPEATS,
) -> float:
    """Median of the ratios of a run with the adapter to one of the bare base in the same turn."""
    runs = [TimedRun(lambda: act(host, name, merged), with_adapter), TimedRun(lambda: act(host, None), bare)]
    own, base = times_in_turns(runs, repeats)
    return statistics.median(first / second for first, second in zip(own, base, strict=True))


def _flops(host: Host, name: str | None, run: Callable[[], object]) -> float:
    host.use(name)
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())
