"""A training step, forward and backward: LoRA r=8 on all linear maps of a bfloat16 Llama, 4 x 128 tokens.

The floor is the frozen model's forward pass and the gradient with respect to its embeddings' output: no adapter needs
less. The optimizer step is not timed: it would add the same to all adapters, and much to full fine-tuning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import deltatune
from benchmarks.measure import ALL_LINEARS, PEFT_LINEARS, VOCABULARY, append, interleaved_times, llama, options, report

BOUNDS = {("deltatune", "floor"): 1.25, ("deltatune", "peft"): 0.62}


def main() -> None:
    arguments = options("step", rows=4, length=128, rank=8)
    ids = torch.randint(0, VOCABULARY, (arguments.rows, arguments.length), generator=torch.Generator().manual_seed(0))
    cases = {
        "floor": floor(ids),
        "deltatune": ours(ids, arguments.rank),
        "full fine-tuning": full(ids),
        "peft": peft(ids, arguments.rank, float32=True),
        "peft, bfloat16 adapters": peft(ids, arguments.rank, float32=False),
    }
    times = interleaved_times(cases, arguments)
    report("step", times, "floor", BOUNDS, arguments)
    saved = {case: saved_bytes(step) for case, step in cases.items()}
    print("saved for the backward pass: " + ", ".join(f"{case} {size / 1e6:.0f} MB" for case, size in saved.items()))
    append(arguments, {"benchmark": "step, bytes saved for the backward pass", "cases": saved})


def floor(ids: torch.Tensor) -> Callable[[], object]:
    model = llama()
    embedded = model.get_input_embeddings()(ids)

    def step() -> None:
        x = embedded.detach().requires_grad_()
        model(inputs_embeds=x, labels=ids).loss.backward()

    return step


def ours(ids: torch.Tensor, rank: int) -> Callable[[], object]:
    """Float32 master weights, computed in the base's bfloat16."""
    host = deltatune.Host(llama())
    host.attach("a", deltatune.LoRA(r=rank, sites=ALL_LINEARS))
    return stepper(host.model, ids)


def full(ids: torch.Tensor) -> Callable[[], object]:
    return stepper(llama().requires_grad_(True), ids)


def peft(ids: torch.Tensor, rank: int, float32: bool) -> Callable[[], object]:
    config = LoraConfig(r=rank, lora_alpha=16, target_modules=PEFT_LINEARS, task_type="CAUSAL_LM")
    return stepper(get_peft_model(llama(), config, autocast_adapter_dtype=float32), ids)


def stepper(model: nn.Module, ids: torch.Tensor) -> Callable[[], object]:
    fill_zeros_(model)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        model(input_ids=ids, labels=ids).loss.backward()

    return step


def saved_bytes(step: Callable[[], object], buffers: Iterable[torch.Tensor] = ()) -> int:
    """Bytes of the distinct tensors that autograd saves between forward and backward pass, without those of the model:
    its parameters, and these buffers."""
    storages: dict[int, int] = {}
    own = {buffer.untyped_storage().data_ptr() for buffer in buffers}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, nn.Parameter) and not isinstance(tensor._base, nn.Parameter):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = 0 if storage.data_ptr() in own else storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        step()
    return sum(storages.values())


@torch.no_grad()
def fill_zeros_(model: nn.Module) -> None:
    """Fill trainable zero matrices with random values, as after some training: zeros and denormals change the speed."""
    for parameter in model.parameters():
        if parameter.requires_grad and not parameter.any():
            parameter.normal_(std=0.01)


if __name__ == "__main__":
    main()
