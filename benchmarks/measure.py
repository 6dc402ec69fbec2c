"""Timing that survives a noisy machine: the cases take turns (A B C A B C ...), medians are compared, never one run."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM

WIDTH, FFN, LAYERS, HEADS, VOCABULARY = 768, 2048, 6, 12, 1000
"""The shape measured: LLaMA's block, with a small vocabulary so that the head does not hide the blocks."""

Clock = Callable[[], float]

ALL_LINEARS = ("*.attn.{q,k,v,o}", "*.ffn.{gate,in,out}")
PEFT_LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Times:
    """Seconds of every repetition, by case, in the order they were taken."""

    seconds: Mapping[str, list[float]]

    def median(self, case: str) -> float:
        return statistics.median(self.seconds[case])

    def ratio(self, case: str, to: str) -> float:
        """Median over the turns of case / to: both saw the same moment of the machine."""
        return statistics.median(a / b for a, b in zip(self.seconds[case], self.seconds[to], strict=True))


def options(name: str, **defaults: int) -> argparse.Namespace:
    """Command line of a benchmark: --turns, --threads, --json and whole numbers of its own."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}")
    for key, value in {"turns": 15, "threads": 2, **defaults}.items():
        parser.add_argument(f"--{key}", type=int, default=value, help=f"default {value}")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: for shared machines, --threads 1"
    )
    parser.add_argument("--json", default="", help="append the figures to this file, one JSON object a line")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    return chosen


def clock_of(chosen: argparse.Namespace) -> Clock:
    """Wall time, or the processor's time of this process alone."""
    return time.process_time if chosen.clock == "cpu" else time.perf_counter


def take_turns(cases: Mapping[str, Callable[[], object]], chosen: argparse.Namespace, warmup: int = 3) -> Times:
    """Run all cases one after the other, `chosen.turns` times, after `warmup` rounds that are not counted."""
    clock = clock_of(chosen)
    seconds: dict[str, list[float]] = {case: [] for case in cases}
    for turn in range(warmup + chosen.turns):
        for case, work in cases.items():
            start = clock()
            work()
            if turn >= warmup:
                seconds[case].append(clock() - start)
    return Times(seconds)


def report(name: str, times: Times, floor: str, bounds: Mapping[tuple[str, str], float], chosen: object) -> None:
    """Print the table and the bounds; append one JSON line with everything."""
    rows = {case: (times.median(case), times.ratio(case, floor)) for case in times.seconds}
    print(f"\n{name}\n{'':28}{'median':>12}{'to ' + floor:>16}")
    for case, (median, ratio) in rows.items():
        print(f"{case:28}{1e3 * median:9.1f} ms{ratio:15.2f}x")
    checked = {f"{case} / {to}": (times.ratio(case, to), most) for (case, to), most in bounds.items()}
    for what, (ratio, most) in checked.items():
        print(f"{what}: {ratio:.3f}, at most {most:g}: {'yes' if ratio <= most else 'NO'}")
    line = {"benchmark": name, "torch": torch.__version__, "cases": rows, "bounds": checked}
    append(chosen, line)


def append(chosen: object, line: Mapping[str, object]) -> None:
    """Add one JSON line to the file asked for, if any."""
    path = getattr(chosen, "json", "")
    if path:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({**line, "options": vars(chosen)}) + "\n")


def llama(layers: int = LAYERS) -> LlamaForCausalLM:
    """A random bfloat16 Llama of the shape above, the same each time, frozen and in training mode."""
    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=FFN,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        vocab_size=VOCABULARY,
        max_position_embeddings=2048,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    return model.requires_grad_(False).train()  # type: ignore[no-any-return]
