"""A training step on a 4-bit base: LoRA r=8 on all linear maps of a Llama in NF4, double quantisation, 4 x 128 tokens.

Against bitsandbytes' Linear4bit with PEFT, prepared as QLoRA prepares it, and the same step on the bfloat16 model. The
4-bit cases run under bfloat16 autocast, as trainers run them, both with bitsandbytes' kernels. Decoding one token with
a cache, and the memory of a step, are reported too.
"""

from __future__ import annotations

from collections.abc import Callable

import bitsandbytes
import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from torch import nn
from transformers import DynamicCache, LlamaForCausalLM

import deltatune
from benchmarks.measure import ALL_LINEARS, PEFT_LINEARS, VOCABULARY, append, interleaved_times, llama, options, report
from benchmarks.step import fill_zeros_, saved_bytes
from deltatune.core.quantization.stored_weights import stored_bytes
from deltatune.models.hardware import peak_memory, reset_peak_memory
from deltatune.models.quantization.quantize_model import quantize_

BOUNDS = {("deltatune nf4", "bitsandbytes + PEFT"): 1.0}


def main() -> None:
    arguments = options("qlora_step", rows=4, length=128, rank=8, tokens=10)
    ids = torch.randint(0, VOCABULARY, (arguments.rows, arguments.length), generator=torch.Generator().manual_seed(0))
    makers = {"deltatune nf4": ours, "bitsandbytes + PEFT": peft, "deltatune bf16": plain, "PEFT bf16": plain_peft}
    models = {case: make(arguments.rank) for case, make in makers.items()}
    steps = {case: stepper(model, ids, "bf16" not in case) for case, model in models.items()}
    report("qlora_step", interleaved_times(steps, arguments), "bitsandbytes + PEFT", BOUNDS, arguments)
    sizes = {
        case: {
            "weights": stored_bytes(model),
            "saved for backward": saved_bytes(step, model.buffers()),
            "peak of a step": peak(step),
        }
        for (case, model), step in zip(models.items(), steps.values(), strict=True)
    }
    for case, parts in sizes.items():
        print(f"{case:28}" + ", ".join(f"{name} {size / 1e6:.0f} MB" for name, size in parts.items()))
    append(arguments, {"benchmark": "qlora_step, bytes", "cases": sizes})
    decoders = {
        "deltatune nf4": decoder(models["deltatune nf4"].eval(), ids, arguments.tokens),
        # In eval mode bitsandbytes packs the codes anew for a kernel that rounds the blocks' magnitudes to bfloat16.
        "bitsandbytes + PEFT, training layout": decoder(models["bitsandbytes + PEFT"].train(), ids, arguments.tokens),
        "bitsandbytes + PEFT, eval layout": decoder(peft(arguments.rank).eval(), ids, arguments.tokens),
        "deltatune bf16": decoder(models["deltatune bf16"].eval(), ids, arguments.tokens),
    }
    times = interleaved_times(decoders, arguments)
    report(f"qlora_step: decode, {arguments.tokens} tokens", times, "deltatune bf16", {}, arguments)


def ours(rank: int) -> nn.Module:
    """All but the linear maps of the blocks in float32."""
    model = llama().float()
    quantize_(model, "nf4")
    return hosted(model, rank)


def plain(rank: int) -> nn.Module:
    return hosted(llama(), rank)


def hosted(model: LlamaForCausalLM, rank: int) -> nn.Module:
    host = deltatune.Host(model)
    host.attach("a", deltatune.LoRA(r=rank, sites=ALL_LINEARS))
    return host.model


def peft(rank: int) -> nn.Module:
    """As transformers loads it and PEFT prepares it for training."""
    model = llama()
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and path != "lm_head":
            model.set_submodule(path, four_bit(module))
    model.is_loaded_in_4bit = True
    prepared = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return get_peft_model(prepared, lora(rank)).train()  # type: ignore[no-any-return]


def plain_peft(rank: int) -> nn.Module:
    return get_peft_model(llama(), lora(rank))  # type: ignore[no-any-return]


def lora(rank: int) -> LoraConfig:
    return LoraConfig(r=rank, lora_alpha=16, target_modules=PEFT_LINEARS, task_type="CAUSAL_LM")


def four_bit(module: nn.Linear) -> nn.Module:
    new = bitsandbytes.nn.Linear4bit(
        module.in_features, module.out_features, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4"
    )
    new.weight = bitsandbytes.nn.Params4bit(module.weight.data, quant_type="nf4", compress_statistics=True, module=new)
    return new.to("cpu")  # type: ignore[no-any-return]  # moving quantises


def stepper(model: nn.Module, ids: torch.Tensor, autocast: bool) -> Callable[[], object]:
    fill_zeros_(model)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()

    return step


def decoder(model: nn.Module, ids: torch.Tensor, tokens: int) -> Callable[[], object]:
    """One row, a token at a time, behind a cache."""
    ids = ids[:1]
    cache = DynamicCache(config=model.config)

    @torch.no_grad()
    def decode() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            if not cache.get_seq_length():
                model(input_ids=ids, past_key_values=cache)
            for _ in range(tokens):
                model(input_ids=ids[:, -1:], past_key_values=cache)
        cache.crop(-tokens)

    return decode


def peak(step: Callable[[], object]) -> int:
    """Bytes of memory that a step adds to the process at its highest."""
    cpu = torch.device("cpu")
    step()
    reset_peak_memory(cpu)
    before = peak_memory(cpu) or 0
    step()
    return (peak_memory(cpu) or 0) - before


if __name__ == "__main__":
    main()
