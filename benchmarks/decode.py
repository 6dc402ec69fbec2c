"""One token's forward with a key-value cache: what a live adapter costs, and that a merged one costs nothing.

The bound of the merged case leaves room for the machine's noise: it runs the bare model's own kernels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import DynamicCache

import deltatune
from benchmarks.measure import ALL_LINEARS, PEFT_LINEARS, VOCABULARY, llama, options, report, take_turns
from benchmarks.step import wake_

BOUNDS = {("deltatune live", "peft live"): 0.9, ("deltatune merged", "bare"): 1.05}


def main() -> None:
    chosen = options("decode", rows=1, length=128, rank=8, tokens=20)
    ids = torch.randint(0, VOCABULARY, (chosen.rows, chosen.length), generator=torch.Generator().manual_seed(0))
    live, merged = hosted(chosen.rank), hosted(chosen.rank)
    merged.merge_("a")
    config = LoraConfig(r=chosen.rank, lora_alpha=16, target_modules=PEFT_LINEARS, task_type="CAUSAL_LM")
    peft = get_peft_model(llama(), config)
    wake_(peft)
    models = {"bare": llama(), "deltatune live": live.model, "deltatune merged": merged.model, "peft live": peft}
    times = take_turns({case: decoder(model, ids, chosen.tokens) for case, model in models.items()}, chosen)
    report(f"decode, {chosen.tokens} tokens", times, "bare", BOUNDS, chosen)


def hosted(rank: int) -> deltatune.Host:
    host = deltatune.Host(llama())
    host.attach("a", deltatune.LoRA(r=rank, sites=ALL_LINEARS))
    wake_(host.model)
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
