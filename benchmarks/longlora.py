"""LongLoRA: time and memory of a training step with grouped and with full attention, by the length of the text."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import deltatune
from benchmarks.measure import append, options

LENGTHS = 1024, 2048, 4096, 8192
CASES = {"full": "LoRA(r=8, sites='*.attn.{q,k,v,o}')", "groups": "LongLoRA(norms=False, embeddings=False)"}


def main() -> None:
    arguments = options("longlora", longest=8192)
    print(f"\nlonglora\n{'tokens':>8}{'full':>12}{'groups':>12}{'time':>8}{'full':>12}{'groups':>12}{'memory':>8}")
    rows = []
    for length in (n for n in LENGTHS if n <= arguments.longest):
        full, groups = (measured(case, length, arguments.threads) for case in CASES)
        ratios = groups[0] / full[0], groups[1] / full[1]
        rows.append({"tokens": length, "full": full, "groups": groups, "ratios": ratios})
        print(
            f"{length:8}{full[0]:10.2f} s{groups[0]:10.2f} s{ratios[0]:7.2f}x"
            f"{full[1] / 1e6:9.0f} MB{groups[1] / 1e6:9.0f} MB{ratios[1]:7.2f}x"
        )
    append(arguments, {"benchmark": "longlora", "rows": rows})


def measured(case: str, length: int, threads: int) -> tuple[float, float]:
    """CPU seconds of a step (the better of two) and the bytes it adds to the process, measured in a new process."""
    code = f"from benchmarks.longlora import one; one({case!r}, {length}, {threads})"
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, memory = json.loads(done.stdout.splitlines()[-1])
    return seconds, memory


def one(case: str, length: int, threads: int) -> None:
    """Run one case and print its figures."""
    torch.set_num_threads(threads)
    config = LlamaConfig(
        hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=8,
        vocab_size=1000, max_position_embeddings=8192,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).train()
    host = deltatune.Host(model)
    host.attach("a", deltatune.parse(CASES[case]))
    ids = torch.randint(0, 1000, (1, length))
    before, times = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    for _ in range(2):
        start = time.process_time()
        model.model(input_ids=ids).last_hidden_state.square().mean().backward()
        times.append(time.process_time() - start)
    print(json.dumps([min(times), 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)]))


if __name__ == "__main__":
    main()
