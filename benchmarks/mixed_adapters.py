"""One decoding step of a batch whose rows have adapters of their own, relative to the bare base.

Llama, bfloat16, a row for each adapter, LoRA on all linear maps, and four methods side by side: in a bank, attached,
and PEFT's mixed batch. Reading the adapters alone takes `1 + bytes of the adapters / bytes of the base`.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

import deltatune
from benchmarks.measure import ALL_LINEARS, PEFT_LINEARS, interleaved_times, options, report
from deltatune.core.adapter import outline
from deltatune.core.delta import generator_for

BOUNDS = {
    ("bank, LoRA", "bare"): 1.3,
    ("bank, four methods", "bare"): 1.5,
    ("bank, LoRA", "peft, LoRA"): 1.0,
}


def main() -> None:
    arguments = options(
        "mixed_adapters", rows=32, width=1536, layers=4, heads=12, length=64, rank=8, vocabulary=8000, peft=1
    )
    rank = arguments.rank
    lora = [deltatune.LoRA(r=rank, sites=ALL_LINEARS)] * arguments.rows
    four: list[deltatune.Method] = [
        deltatune.LoRA(r=rank, sites=ALL_LINEARS),
        deltatune.Pfeiffer(size=arguments.width // 32),
        deltatune.IA3(),
        deltatune.Prefix(length=16),
    ]
    mixed = [four[i * 4 // arguments.rows] for i in range(arguments.rows)]
    names = [f"a{i}" for i in range(arguments.rows)]
    model = llama(arguments)
    host = deltatune.Host(model)
    banked(host, names, lora)
    cases = {
        "bare": step(host, None, arguments),
        "bank, one adapter": step(host, names[0], arguments),
        "bank, LoRA": step(host, names, arguments),
        "bank, LoRA, scattered": step(host, [names[i * 7 % len(names)] for i in range(len(names))], arguments),
    }
    mixed_host = deltatune.Host(llama(arguments))
    banked(mixed_host, names, mixed)
    cases["bank, four methods"] = step(mixed_host, names, arguments)
    attached = deltatune.Host(llama(arguments))
    for name, method in zip(names, lora, strict=True):
        attached.attach(name, method)
        fill_(attached.adapters[name].parameters(), name)
    cases["attached, LoRA"] = step(attached, names, arguments)
    if arguments.peft:
        cases["peft, LoRA"] = peft_step(names, arguments)
    base, adapters = sum(p.numel() for p in model.model.layers.parameters()), host.adapters[names[0]].count
    times = interleaved_times(cases, arguments)
    print(f"reading alone: {1 + len(names) * adapters / base:.2f} (without the language-model head)")
    bounds = {pair: most for pair, most in BOUNDS.items() if pair[0] in cases and pair[1] in cases}
    report(f"mixed adapters, {arguments.rows} rows, {arguments.threads} threads", times, "bare", bounds, arguments)


def llama(arguments: Namespace) -> LlamaForCausalLM:
    config = LlamaConfig(
        hidden_size=arguments.width,
        intermediate_size=arguments.width * 8 // 3,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.heads,
        num_key_value_heads=arguments.heads,
        vocab_size=arguments.vocabulary,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    return model.requires_grad_(False).eval()  # type: ignore[no-any-return]


def fill_(tensors: object, name: str) -> None:
    """Small random values, so that every adapter changes something."""
    for number, tensor in enumerate(tensors):  # type: ignore[arg-type, var-annotated]
        with torch.no_grad():
            tensor.normal_(std=0.02, generator=generator_for(number, name))


def banked(host: deltatune.Host, names: Sequence[str], methods: Sequence[deltatune.Method]) -> None:
    """Put random adapters into the host's bank."""
    bank = host.bank(slots=len(names))
    for name, method in zip(names, methods, strict=True):
        shapes = outline(method, host.sites, host.model).tensors()
        tensors = {key: torch.empty(shape.shape) for key, shape in shapes.items()}
        fill_(tensors.values(), name)
        bank.put(name, method, tensors)


def step(host: deltatune.Host, route: object, arguments: Namespace) -> Callable[[], object]:
    """One step of decoding under a route."""
    cache, ids = DynamicCache(config=host.model.config), prompt(arguments)
    routes: list[object] = [route]

    def decode() -> None:
        with torch.inference_mode():
            if routes[0] is route:  # a Route is read once, as a loop of decoding does
                host.use(route)  # type: ignore[arg-type]
                routes[0] = host.route
            else:
                host.use(routes[0])  # type: ignore[arg-type]
            if not cache.get_seq_length():
                host.model(input_ids=ids, past_key_values=cache)
            mask = torch.ones(len(ids), cache.get_seq_length() + 1, dtype=torch.long)
            host.model(input_ids=ids[:, -1:], attention_mask=mask, past_key_values=cache)
            cache.crop(-1)

    return decode


def peft_step(names: Sequence[str], arguments: Namespace) -> Callable[[], object]:
    """One step of PEFT's mixed batch."""
    config = LoraConfig(r=arguments.rank, lora_alpha=16, target_modules=PEFT_LINEARS, task_type="CAUSAL_LM")
    model = get_peft_model(llama(arguments), config, adapter_name=names[0], autocast_adapter_dtype=False)
    for name in names[1:]:
        model.add_adapter(name, config)
    fill_((p for key, p in model.named_parameters() if "lora_" in key), "peft")
    model.eval()
    cache, ids = DynamicCache(config=model.config), prompt(arguments)

    def decode() -> None:
        with torch.inference_mode():
            if not cache.get_seq_length():
                model(input_ids=ids, past_key_values=cache, adapter_names=list(names))
            model(input_ids=ids[:, -1:], past_key_values=cache, adapter_names=list(names))
            cache.crop(-1)

    return decode


def prompt(arguments: Namespace) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, arguments.vocabulary, (arguments.rows, arguments.length), generator=generator)


if __name__ == "__main__":
    main()
