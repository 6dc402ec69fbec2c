"""Decoding one token with a key-value cache: the cost of an unmerged adapter, and that a merged one costs nothing.

The bound of the merged case leaves room for noise: it runs the same kernels as the bare model.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import DynamicCache

import deltatune
from benchmarks.measure import ALL_LINEARS, PEFT_LINEARS, VOCABULARY, interleaved_times, llama, options, report
from benchmarks.step import fill_zeros_

BOUNDS = {("deltatune unmerged", "peft unmerged"): 0.9, ("deltatune merged", "bare"): 1.05}


def main() -> None:
    arguments = options("decode", rows=1, length=128, rank=8, tokens=20)
    ids = torch.randint(0, VOCABULARY, (arguments.rows, arguments.length), generator=torch.Generator().manual_seed(0))
    unmerged, merged = hosted(arguments.rank), hosted(arguments.rank)
    merged.merge_("a")
    config = LoraConfig(r=arguments.rank, lora_alpha=16, target_modules=PEFT_LINEARS, task_type="CAUSAL_LM")
    peft = get_peft_model(llama(), config)
    fill_zeros_(peft)
    models = {
        "bare": llama(),
        "deltatune unmerged": unmerged.model,
        "deltatune merged": merged.model,
        "peft unmerged": peft,
    }
    times = interleaved_times(
        {case: decoder(model, ids, arguments.tokens) for case, model in models.items()}, arguments
    )
    report(f"decode, {arguments.tokens} tokens", times, "bare", BOUNDS, arguments)


def hosted(rank: int) -> deltatune.Host:
    host = deltatune.Host(llama())
    host.attach("a", deltatune.LoRA(r=rank, sites=ALL_LINEARS))
    fill_zeros_(host.model)
    return host


def decoder(model: nn.Module, ids: torch.Tensor, tokens: int) -> Callable[[], object]:
    model.eval()
    cache = DynamicCache(config=model.config)

    @torch.no_grad()
    def decode() -> None:
        if not cache.get_seq_length():
            model(input_ids=ids, past_key_values=cache)
        for _ in range(tokens):
            model(input_ids=ids[:, -1:], past_key_values=cache)
        cache.crop(-tokens)

    return decode


if __name__ == "__main__":
    main()
