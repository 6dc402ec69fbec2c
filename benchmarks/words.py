"""A training step on written text: logits where a label is, and rows packed into one sequence.

LoRA r=8 on a bfloat16 Llama with a vocabulary of 32,000, whose answers are a quarter of the tokens: logits of the
labelled tokens alone against logits of all (what model(labels=...) computes). Then rows of 16 to 256 tokens, packed
against padded. Both sides have the same loss.
"""

from __future__ import annotations

import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import deltatune
from benchmarks.measure import ALL_LINEARS, append, options, report, take_turns
from benchmarks.step import wake_
from deltatune.models import hardware
from deltatune.tasks import Generate
from deltatune.tasks.collator import Collate
from deltatune.tasks.task import IGNORED, TokenRow
from deltatune.training.task_model import TaskModel

VOCABULARY = 32_000
BOUNDS = {("labelled tokens", "all tokens"): 0.5}
MEMORY = 0.7
MIXED = [16, 32, 48, 64, 96, 128, 192, 256]
"""Lengths of the rows that are packed."""
Step = Callable[[], object]


def main() -> None:
    chosen = options("words", rows=4, length=128, rank=8, width=256, layers=2, only=0)
    equal, mixed = rows_of([chosen.length] * chosen.rows), rows_of(MIXED)
    cases = {"all tokens": lambda: own(chosen, equal), "labelled tokens": lambda: ours(chosen, equal)}
    if chosen.only:  # in a process of its own: the highest memory is the process's
        print(peak(list(cases.values())[chosen.only - 1]()))
        return
    times = take_turns({name: make() for name, make in cases.items()}, chosen)
    report("words", times, "all tokens", BOUNDS, chosen)
    times = take_turns({"padded": ours(chosen, mixed), "packed": ours(chosen, mixed, packing=True)}, chosen)
    report("words, rows of mixed lengths", times, "padded", {}, chosen)
    kept = {name: alone(number) for number, name in enumerate(cases, 1)}
    ratio = kept["labelled tokens"] / kept["all tokens"]
    print("memory of a step: " + ", ".join(f"{case} {size / 1e6:.0f} MB" for case, size in kept.items()))
    print(f"ratio {ratio:.2f}, at most {MEMORY}: {'yes' if ratio <= MEMORY else 'NO'}")
    append(chosen, {"benchmark": "words, memory of a step", "cases": kept})


def rows_of(lengths: list[int]) -> list[TokenRow]:
    """Random rows whose last quarter is to be learnt."""
    generator = torch.Generator().manual_seed(0)
    rows: list[TokenRow] = []
    for length in lengths:
        ids = torch.randint(1, VOCABULARY, (length,), generator=generator).tolist()
        asked = length - length // 4
        rows.append({"input_ids": ids, "attention_mask": [1] * length, "labels": [IGNORED] * asked + ids[asked:]})
    return rows


def host(chosen: Namespace) -> deltatune.Host:
    config = LlamaConfig(
        hidden_size=chosen.width,
        intermediate_size=3 * chosen.width,
        num_hidden_layers=chosen.layers,
        num_attention_heads=chosen.width // 64,
        num_key_value_heads=chosen.width // 64,
        vocab_size=VOCABULARY,
    )
    torch.manual_seed(0)
    made = deltatune.Host(LlamaForCausalLM(config).to(torch.bfloat16).train())
    made.attach("a", deltatune.LoRA(r=chosen.rank, sites=ALL_LINEARS), head=False)
    wake_(made.model)
    return made


def own(chosen: Namespace, rows: list[TokenRow]) -> Step:
    model = host(chosen).model
    batch = Collate({"input_ids": 0, "attention_mask": 0})(rows)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        model(**batch, use_cache=False).loss.backward()

    return step


def ours(chosen: Namespace, rows: list[TokenRow], packing: bool = False) -> Step:
    tuned = TaskModel(host(chosen), "a", Generate()).train()
    fill = {"input_ids": 0} if packing else {"input_ids": 0, "attention_mask": 0}
    batch = Collate(fill, packed=packing)(rows)
    batch.pop("rows", None)

    def step() -> None:
        tuned.zero_grad(set_to_none=True)
        tuned(**batch)["loss"].backward()

    return step


def peak(step: Step) -> int:
    """Bytes by which a few steps raise the process's highest memory."""
    hardware.reset_peak_memory(torch.device("cpu"))
    before = hardware.peak_memory(torch.device("cpu"))
    for _ in range(3):
        step()
    after = hardware.peak_memory(torch.device("cpu"))
    if before is None or after is None:
        raise SystemExit("this system does not tell a process's highest memory")
    return after - before


def alone(number: int) -> int:
    """`peak` in a process of its own, with this one's options."""
    command = [sys.executable, "-m", "benchmarks.words", *sys.argv[1:], "--only", str(number)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


if __name__ == "__main__":
    main()
