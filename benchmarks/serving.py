"""Serving: clients that each want another adapter, against clients of the bare base in the same engine.

    python -m benchmarks.serving --clients 32 --tokens 32

Throughput is that of a burst: every client sends one request at once and waits for its end. The cases take turns:
the bare base, one LoRA for all, a LoRA for each client, four methods mixed, and for comparison `host.generate` one
request after another, and transformers' own continuous batching on the bare base, whose packed rows have no place for a
route of their own.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import GenerationConfig, PreTrainedTokenizerFast

from benchmarks.measure import append, llama, options
from deltatune import IA3, Bottleneck, Host, LoRA, Prefix
from deltatune.serving.engine.engine import Engine
from deltatune.serving.engine.engine_limits import EngineLimits
from deltatune.serving.engine.requests import GenerateRequest, Sampling

PROMPT = (16, 48)
"""Tokens of a prompt: from, to."""
MIXED = {"lora": LoRA(r=8), "prefix": Prefix(length=8), "bottleneck": Bottleneck(size=32), "ia3": IA3()}


def main() -> None:
    arguments = options("serving", clients=32, tokens=32, layers=6, others=1)
    host = Host(llama(arguments.layers).eval())
    names = [f"lora{i}" for i in range(arguments.clients)]
    for number, name in enumerate(names):
        put(host, name, LoRA(r=8, sites="*.attn.{q,v}"), number)
    for number, (name, method) in enumerate(MIXED.items()):
        put(host, name, method, number)
    host.use(None)
    draw = random.Random(0)
    prompts = [tuple(draw.randrange(10, 900) for _ in range(draw.randint(*PROMPT))) for _ in names]
    cases: Mapping[str, Sequence[Mapping[str, float]]] = {
        "bare base": [{}] * len(prompts),
        "one LoRA": [{names[0]: 1.0}] * len(prompts),
        "a LoRA each": [{name: 1.0} for name in names],
        "four methods": [{list(MIXED)[i % len(MIXED)]: 1.0} for i in range(len(prompts))],
    }
    limits = EngineLimits(rows=arguments.clients, prompt_cache=False)
    engine = Engine(host, tokenizer(), limits=limits)
    figures: dict[str, list[dict[str, float]]] = {case: [] for case in cases}
    sampling = Sampling(max_tokens=arguments.tokens, ignore_eos=True)
    for turn in range(arguments.turns + 1):
        for case, adapters in cases.items():
            requests = [GenerateRequest(p, a, sampling) for p, a in zip(prompts, adapters, strict=True)]
            figures[case] += [burst(engine, requests)][: turn > 0]  # the first turn warms up
    engine.close()
    if arguments.others:
        others_(figures, host, prompts, cases["a LoRA each"], arguments.tokens)
    report(figures, arguments)


def others_(
    figures: dict[str, list[dict[str, float]]],
    host: Host,
    prompts: Sequence[tuple[int, ...]],
    adapters: Sequence[Mapping[str, float]],
    tokens: int,
) -> None:
    """Add the figures without the engine."""
    alone = one_by_one(host, prompts, adapters, tokens)
    figures["host.generate, one by one"] = [alone]
    packed = transformers_batching(host, prompts, tokens)
    if packed is not None:
        figures["transformers, bare base"] = packed


def put(host: Host, name: str, method: Any, seed: int) -> None:
    """Attach an adapter with random values, or put it into the bank where that holds its method."""
    host.attach(name, method, seed=seed, head=False)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in host.trainable(name):
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    bank = host.bank()
    if bank.can_hold(method):
        tensors = {key: tensor.clone() for key, tensor in host.adapters[name].tensors().items()}
        host.detach(name)
        host.bank(slots=max(bank.slots, len(bank.names) + 1))
        bank.put(name, method, tensors, seed=seed)


def burst(engine: Engine, requests: Sequence[GenerateRequest]) -> dict[str, float]:
    """All requests at once: tokens a second, and seconds to the first token and for each further one."""
    begun = time.perf_counter()
    results = [ticket.result(600) for ticket in [engine.submit(request) for request in requests]]
    seconds = time.perf_counter() - begun
    first = sorted(result.done.timings.first or 0.0 for result in results)
    each = sorted(
        (result.done.timings.total - (result.done.timings.first or 0.0)) / max(1, len(result.ids) - 1)
        for result in results
    )
    return {
        "tokens a second": sum(len(result.ids) for result in results) / seconds,
        "first token, median": statistics.median(first),
        "first token, 95 %": first[int(0.95 * (len(first) - 1))],
        "token, median": statistics.median(each),
        "token, 95 %": each[int(0.95 * (len(each) - 1))],
    }


def one_by_one(
    host: Host, prompts: Sequence[tuple[int, ...]], adapters: Sequence[Mapping[str, float]], tokens: int
) -> dict[str, float]:
    """`host.generate` for a quarter of the requests, one after another."""
    some = len(prompts) // 4
    begun, generated = time.perf_counter(), 0
    for prompt, weights in zip(prompts[:some], adapters[:some], strict=True):
        ids = torch.tensor([prompt])
        with host.using(weights, training=False):
            out = host.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens,
                do_sample=False,
            )  # fmt: skip
        generated += out.shape[1] - ids.shape[1]
    return {"tokens a second": generated / (time.perf_counter() - begun)}


def transformers_batching(host: Host, prompts: Sequence[tuple[int, ...]], tokens: int) -> list[dict[str, float]] | None:
    """The same burst through `model.generate_batch` without adapters; None where it does not run."""
    config = GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
    host.use(None)
    figures = []
    try:
        for _ in range(2):
            begun = time.perf_counter()
            outputs = host.model.generate_batch(inputs=[list(prompt) for prompt in prompts], generation_config=config)
            seconds = time.perf_counter() - begun
            generated = sum(len(output.generated_tokens) for output in outputs.values())
            figures.append({"tokens a second": generated / seconds})
    except Exception as error:
        print(f"transformers' continuous batching does not run here: {type(error).__name__}: {error}")
        return None
    return figures[1:]


def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer without an end token: the engine works on ids."""
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"[PAD]": 0}, "[PAD]")), pad_token="[PAD]")


def report(figures: Mapping[str, Sequence[Mapping[str, float]]], arguments: Any) -> None:
    """Medians, and the ratio to the bare base within a turn."""
    print(
        f"\nserving, {arguments.clients} clients, {arguments.tokens} tokens\n{'':28}{'tok/s':>9}{'to base':>9}", end=""
    )
    print(f"{'first ms':>10}{'95 %':>8}{'token ms':>10}{'95 %':>8}")
    base = figures["bare base"]
    lines = {}
    for case, turns in figures.items():
        pairs = zip(turns, base, strict=False)
        ratio = statistics.median(own["tokens a second"] / bare["tokens a second"] for own, bare in pairs)
        medians = {key: statistics.median(turn[key] for turn in turns) for key in turns[0]}
        lines[case] = {**medians, "to base": ratio}
        rest = [f"{1e3 * value:.0f}" for key, value in medians.items() if key != "tokens a second"]
        print(f"{case:28}{medians['tokens a second']:9.0f}{ratio:9.2f}", "".join(f"{value:>9}" for value in rest))
    append(arguments, {"benchmark": "serving", "torch": torch.__version__, "cases": lines})


if __name__ == "__main__":
    main()
