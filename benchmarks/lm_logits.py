"""Language-model training steps: logits at labelled tokens only, and rows packed into one sequence.

LoRA r=8 on a bfloat16 Llama with a vocabulary of 32,000, with labels on a quarter of the tokens: logits of the labelled
tokens alone relative to logits of all (what model(labels=...) computes). Then rows of 16 to 256 tokens, packed relative
to padded. Both sides have the same loss.
"""

from __future__ import annotations

import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import deltatune
from benchmarks.measure import ALL_LINEARS, append, interleaved_times, options, report
from benchmarks.step import fill_zeros_
from deltatune.models import environment as hardware
from deltatune.tasks import Generate
from deltatune.tasks.collator import PaddingCollator
from deltatune.tasks.task import IGNORED, TokenRow
from deltatune.training.task_model import TaskModel

VOCABULARY = 32_000
BOUNDS = {("labelled tokens", "all tokens"): 0.5}
MEMORY = 0.7
MIXED = [16, 32, 48, 64, 96, 128, 192, 256]
"""Lengths of the rows that are packed."""
Step = Callable[[], object]


def main() -> None:
    arguments = options("lm_logits", rows=4, length=128, rank=8, width=256, layers=2, only=0)
    equal, mixed = rows_of([arguments.length] * arguments.rows), rows_of(MIXED)
    cases = {
        "all tokens": lambda: all_logits(arguments, equal),
        "labelled tokens": lambda: labelled_logits(arguments, equal),
    }
    if arguments.only:  # in a new process: the peak memory is the process's
        print(peak(list(cases.values())[arguments.only - 1]()))
        return
    times = interleaved_times({name: make() for name, make in cases.items()}, arguments)
    report("lm_logits", times, "all tokens", BOUNDS, arguments)
    times = interleaved_times(
        {"padded": labelled_logits(arguments, mixed), "packed": labelled_logits(arguments, mixed, packing=True)},
        arguments,
    )
    report("lm_logits, rows of mixed lengths", times, "padded", {}, arguments)
    memory = {name: peak_in_new_process(number) for number, name in enumerate(cases, 1)}
    ratio = memory["labelled tokens"] / memory["all tokens"]
    print("memory of a step: " + ", ".join(f"{case} {size / 1e6:.0f} MB" for case, size in memory.items()))
    print(f"ratio {ratio:.2f}, at most {MEMORY}: {'yes' if ratio <= MEMORY else 'NO'}")
    append(arguments, {"benchmark": "lm_logits, memory of a step", "cases": memory})


def rows_of(lengths: list[int]) -> list[TokenRow]:
    """Random rows with labels on their last quarter."""
    generator = torch.Generator().manual_seed(0)
    rows: list[TokenRow] = []
    for length in lengths:
        ids = torch.randint(1, VOCABULARY, (length,), generator=generator).tolist()
        prompt = length - length // 4
        rows.append({"input_ids": ids, "attention_mask": [1] * length, "labels": [IGNORED] * prompt + ids[prompt:]})
    return rows


def llama_host(arguments: Namespace) -> deltatune.Host:
    config = LlamaConfig(
        hidden_size=arguments.width,
        intermediate_size=3 * arguments.width,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.width // 64,
        num_key_value_heads=arguments.width // 64,
        vocab_size=VOCABULARY,
    )
    torch.manual_seed(0)
    host = deltatune.Host(LlamaForCausalLM(config).to(torch.bfloat16).train())
    host.attach("a", deltatune.LoRA(r=arguments.rank, sites=ALL_LINEARS), head=False)
    fill_zeros_(host.model)
    return host


def all_logits(arguments: Namespace, rows: list[TokenRow]) -> Step:
    model = llama_host(arguments).model
    batch = PaddingCollator({"input_ids": 0, "attention_mask": 0})(rows)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        model(**batch, use_cache=False).loss.backward()

    return step


def labelled_logits(arguments: Namespace, rows: list[TokenRow], packing: bool = False) -> Step:
    model = TaskModel(llama_host(arguments), "a", Generate()).train()
    fill = {"input_ids": 0} if packing else {"input_ids": 0, "attention_mask": 0}
    batch = PaddingCollator(fill, packed=packing)(rows)
    batch.pop("rows", None)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        model(**batch)["loss"].backward()

    return step


def peak(step: Step) -> int:
    """Bytes by which a few steps raise the process's peak memory."""
    hardware.reset_peak_memory(torch.device("cpu"))
    before = hardware.peak_memory(torch.device("cpu"))
    for _ in range(3):
        step()
    after = hardware.peak_memory(torch.device("cpu"))
    if before is None or after is None:
        raise SystemExit("this system does not report a process's peak memory")
    return after - before


def peak_in_new_process(number: int) -> int:
    """`peak` in a new process with the options of this one."""
    command = [sys.executable, "-m", "benchmarks.lm_logits", *sys.argv[1:], "--only", str(number)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


if __name__ == "__main__":
    main()
