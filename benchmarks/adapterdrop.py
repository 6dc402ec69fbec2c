"""AdapterDrop: time saved by dropping the adapters of the first layers, in a training step and in inference.

Bottlenecks of width 48 after each FFN of a bfloat16 Llama. Training backpropagates only to the lowest layer with an
adapter: each dropped layer saves its backward pass, two thirds of its time. Inference can gain no more than the
adapters cost: little for one, about twice that for four in one batch, each on its own row.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

import deltatune
from benchmarks.measure import LAYERS, VOCABULARY, interleaved_times, llama, options, report
from benchmarks.step import fill_zeros_, stepper
from deltatune.methods.adapters.adapterdrop import AdapterDrop


def main() -> None:
    arguments = options("adapterdrop", rows=4, length=128, size=48, adapters=4)
    ids = torch.randint(0, VOCABULARY, (arguments.rows, arguments.length), generator=torch.Generator().manual_seed(0))
    drops = range(LAYERS)
    train = {f"drop {k}": step(ids, arguments.size, k) for k in drops}
    report("adapterdrop, training step", interleaved_times(train, arguments), "drop 0", {}, arguments)
    robust = {"drop 0": train["drop 0"], "robust": step(ids, arguments.size, 0, robust=True)}
    report("adapterdrop, robust training", interleaved_times(robust, arguments), "drop 0", {}, arguments)
    for adapters in (1, arguments.adapters):
        use = {"no adapter": infer(ids, arguments.size, None, 1)}
        use |= {f"drop {k}": infer(ids, arguments.size, k, adapters) for k in drops}
        name = f"adapterdrop, inference, adapters: {adapters}"
        report(name, interleaved_times(use, arguments), "drop 0", {}, arguments)


def step(ids: torch.Tensor, size: int, drop: int, robust: bool = False) -> Callable[[], object]:
    """Forward and backward pass with the first layers dropped."""
    host = deltatune.Host(llama())
    host.attach("a", AdapterDrop(size=size, drop=drop, robust=robust))
    host.model.train()
    return stepper(host.model, ids)


def infer(ids: torch.Tensor, size: int, drop: int | None, adapters: int) -> Callable[[], object]:
    """A forward pass without gradients; several adapters divide the rows among them."""
    host = deltatune.Host(llama().eval())
    names = [] if drop is None else [f"a{i}" for i in range(adapters)]
    for i, name in enumerate(names):
        host.attach(name, AdapterDrop(size=size, drop=drop or 0), seed=i)
    fill_zeros_(host.model)
    host.use([names[row % adapters] for row in range(len(ids))] if adapters > 1 else names[0] if names else None)

    @torch.no_grad()
    def forward() -> None:
        host.model(input_ids=ids)

    return forward


if __name__ == "__main__":
    main()
