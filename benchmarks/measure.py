"""Timing on a noisy machine: the cases alternate (A B C A B C ...), and medians are compared, never single runs."""

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
"""The model's shape: LLaMA's block, with a small vocabulary so that the head does not dominate."""

Clock = Callable[[], float]

ALL_LINEARS = ("*.attn.{q,k,v,o}", "*.ffn.{gate,in,out}")
PEFT_LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Times:
    """Seconds of every repetition, by case, in order."""

    seconds: Mapping[str, list[float]]

    def median(self, case: str) -> float:
        return statistics.median(self.seconds[case])

    def ratio(self, case: str, to: str) -> float:
        """Median over the turns of case / to: both ran under the same load."""
        return statistics.median(a / b for a, b in zip(self.seconds[case], self.seconds[to], strict=True))


def options(name: str, **defaults: int) -> argparse.Namespace:
    """Command line of a benchmark: --turns, --threads, --clock, --json and its own integer options."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}")
    for key, value in {"turns": 15, "threads": 2, **defaults}.items():
        parser.add_argument(f"--{key}", type=int, default=value, help=f"default {value}")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: for shared machines, --threads 1"
    )
    parser.add_argument("--json", default="", help="append the figures to this file, one JSON object a line")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    return arguments


def clock_of(arguments: argparse.Namespace) -> Clock:
    """Wall time, or the CPU time of this process."""
    return time.process_time if arguments.clock == "cpu" else time.perf_counter


def interleaved_times(
    cases: Mapping[str, Callable[[], object]], arguments: argparse.Namespace, warmup: int = 3
) -> Times:
    """Seconds of all cases, run in alternation `arguments.turns` times after `warmup` uncounted rounds."""
    clock = clock_of(arguments)
    seconds: dict[str, list[float]] = {case: [] for case in cases}
    for turn in range(warmup + arguments.turns):
        for case, work in cases.items():
            start = clock()
            work()
            if turn >= warmup:
                seconds[case].append(clock() - start)
    return Times(seconds)


def report(name: str, times: Times, floor: str, bounds: Mapping[tuple[str, str], float], arguments: object) -> None:
    """Print the table and the bounds; append one JSON line with everything."""
    rows = {case: (times.median(case), times.ratio(case, floor)) for case in times.seconds}
    print(f"\n{name}\n{'':28}{'median':>12}{'to ' + floor:>16}")
    for case, (median, ratio) in rows.items():
        print(f"{case:28}{1e3 * median:9.1f} ms{ratio:15.2f}x")
    checked = {f"{case} / {to}": (times.ratio(case, to), most) for (case, to), most in bounds.items()}
    for what, (ratio, most) in checked.items():
        print(f"{what}: {ratio:.3f}, at most {most:g}: {'yes' if ratio <= most else 'NO'}")
    line = {"benchmark": name, "torch": torch.__version__, "cases": rows, "bounds": checked}
    append(arguments, line)


def append(arguments: object, line: Mapping[str, object]) -> None:
    """Append one JSON line to the file that `--json` names, if any."""
    path = getattr(arguments, "json", "")
    if path:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({**line, "options": vars(arguments)}) + "\n")


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
