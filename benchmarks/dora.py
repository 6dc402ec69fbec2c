"""Cost of DoRA's norms: a training step of DoRA relative to one of LoRA, here and in PEFT.

r=8 on all linear maps of a bfloat16 Llama, 4 x 128 tokens, forward and backward, as in `benchmarks.step`. PEFT's
adapters are float32, its default.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from peft import LoraConfig, get_peft_model

import deltatune
from benchmarks.measure import ALL_LINEARS, PEFT_LINEARS, VOCABULARY, append, interleaved_times, llama, options, report
from benchmarks.step import saved_bytes, stepper

BOUNDS = {("dora", "lora"): 1.2}


def main() -> None:
    arguments = options("dora", rows=4, length=128, rank=8)
    ids = torch.randint(0, VOCABULARY, (arguments.rows, arguments.length), generator=torch.Generator().manual_seed(0))
    cases = {
        "lora": ours(deltatune.LoRA(r=arguments.rank, sites=ALL_LINEARS), ids),
        "dora": ours(deltatune.DoRA(r=arguments.rank, sites=ALL_LINEARS), ids),
        "dora, exact gradient": ours(deltatune.DoRA(r=arguments.rank, sites=ALL_LINEARS, norm="exact"), ids),
        "peft lora": peft(ids, arguments.rank, dora=False),
        "peft dora": peft(ids, arguments.rank, dora=True),
    }
    times = interleaved_times(cases, arguments)
    report("dora", times, "lora", BOUNDS, arguments)
    print(f"peft dora / peft lora: {times.ratio('peft dora', 'peft lora'):.2f}")
    saved = {case: saved_bytes(step) for case, step in cases.items()}
    print("saved for the backward pass: " + ", ".join(f"{case} {size / 1e6:.0f} MB" for case, size in saved.items()))
    append(arguments, {"benchmark": "dora, bytes saved for the backward pass", "cases": saved})


def ours(method: deltatune.Method, ids: torch.Tensor) -> Callable[[], object]:
    host = deltatune.Host(llama())
    host.attach("a", method)
    return stepper(host.model, ids)


def peft(ids: torch.Tensor, rank: int, dora: bool) -> Callable[[], object]:
    config = LoraConfig(r=rank, lora_alpha=16, target_modules=PEFT_LINEARS, task_type="CAUSAL_LM", use_dora=dora)
    return stepper(get_peft_model(llama(), config), ids)


if __name__ == "__main__":
    main()
