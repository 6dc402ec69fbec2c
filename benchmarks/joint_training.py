"""Several LoRA adapters trained in one pass of the base, relative to the same trainings one after another.

Whole trainings of a few steps, optimizer included, in turns, on the built-in encoder and on a small random Llama. Each
adapter has rows of its own, of the built-in reviews or of random tokens, in batches of rows of similar length. Ratios
above 1: together is faster.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import Any

import torch
from transformers import LlamaConfig, LlamaModel

import deltatune
from benchmarks.measure import append, interleaved_times, options
from deltatune.data import read
from deltatune.models.loading import load_backbone
from deltatune.tasks import Classify, Encoded
from deltatune.training import AdapterTraining, Settings, encode_for, train, train_together

ADAPTERS = (2, 4, 8)
BATCHES = (4, 8, 16, 32)
STEPS = 3


def main() -> None:
    arguments = options("joint_training", turns=5, length=32, width=256, layers=6, most=8, largest=32)
    for name, host, task, rows, tokenizer in (builtin(arguments), llama(arguments)):
        print(f"\n{name}: seconds one after another / seconds together, {arguments.threads} threads")
        print(f"{'adapters':>10}{'batch':>8}{'own orders':>14}{'one order':>14}")
        for count in (count for count in ADAPTERS if count <= arguments.most):
            for batch in (batch for batch in BATCHES if batch <= arguments.largest):
                own, one = (
                    ratio(host, trainings(count, batch, task, rows, seeds), tokenizer, arguments)
                    for seeds in (range(count), [0] * count)
                )
                print(f"{count:10}{batch:8}{own:14.2f}{one:14.2f}", flush=True)
                line = {"benchmark": "joint_training", "model": name, "adapters": count, "batch": batch}
                append(arguments, {**line, "own_orders": own, "one_order": one})


def builtin(arguments: Namespace) -> tuple[str, deltatune.Host, Classify, Encoded, Any]:
    """The built-in encoder and data."""
    data = read("python-docs", limit=400)
    model, tokenizer = load_backbone("builtin")
    host = deltatune.Host(model)
    task = Classify(data.labels, data.text, data.label, max_length=arguments.length)
    return "MiniLM", host, task, attached(host, task, data.train, tokenizer), tokenizer


def llama(arguments: Namespace) -> tuple[str, deltatune.Host, Classify, Encoded, Any]:
    """A small decoder on the same rows."""
    _, encoder, task, rows, tokenizer = builtin(arguments)
    config = LlamaConfig(
        hidden_size=arguments.width,
        intermediate_size=arguments.width * 8 // 3,
        num_hidden_layers=arguments.layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=encoder.sites.facts.vocabulary,
    )
    torch.manual_seed(0)
    host = deltatune.Host(LlamaModel(config))
    attached(host, task, [], tokenizer)
    return f"Llama, {arguments.layers} layers of {arguments.width}", host, task, rows, tokenizer


def attached(host: deltatune.Host, task: Classify, rows: Any, tokenizer: Any) -> Encoded:
    """The rows, after LoRA adapters with heads are attached."""
    for i in range(max(ADAPTERS)):
        host.attach(f"a{i}", deltatune.LoRA(r=8), seed=i, head=task.make_head(host.model.config, seed=i))
    return encode_for(host, "a0", task, rows, tokenizer)


def trainings(count: int, batch: int, task: Classify, rows: Encoded, seeds: Any) -> list[AdapterTraining]:
    """A few steps of each adapter; `seeds` order the rows."""
    return [
        AdapterTraining(
            f"a{i}", task, rows, None, Settings(max_steps=STEPS, batch_size=batch, precision="float32", seed=seed)
        )
        for i, seed in enumerate(seeds)
    ]


def ratio(host: deltatune.Host, asked: list[AdapterTraining], tokenizer: Any, arguments: Namespace) -> float:
    """Median ratio of the seconds apart to those together."""

    def apart() -> None:
        for each in asked:
            train(host, each.name, each.task, each.rows_train, None, tokenizer, each.settings)

    cases: dict[str, Callable[[], object]] = {
        "apart": apart,
        "together": lambda: train_together(host, asked, tokenizer),
    }
    return interleaved_times(cases, arguments, warmup=1).ratio("apart", "together")


if __name__ == "__main__":
    main()
