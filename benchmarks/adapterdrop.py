"""AdapterDrop: what leaving out the adapters of the first layers saves, in a training step and in inference.

Bottlenecks of width 48 behind each FFN of a bfloat16 Llama. Training goes back to the lowest layer with an adapter
only: each layer left out saves its backward pass, two thirds of its time. Inference can gain no more than the adapters
cost: little for one, about twice that for four in one batch, each on its own row.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

import deltatune
from benchmarks.measure import LAYERS, VOCABULARY, llama, options, report, take_turns
from benchmarks.step import stepper, wake_
from deltatune.methods.adapters.adapterdrop import AdapterDrop


def main() -> None:
    chosen = options("adapterdrop", rows=4, length=128, size=48, adapters=4)
    ids = torch.randint(0, VOCABULARY, (chosen.rows, chosen.length), generator=torch.Generator().manual_seed(0))
    drops = range(LAYERS)
    train = {f"drop {k}": step(ids, chosen.size, k) for k in drops}
    report("adapterdrop, training step", take_turns(train, chosen), "drop 0", {}, chosen)
    robust = {"drop 0": train["drop 0"], "robust": step(ids, chosen.size, 0, robust=True)}
    report("adapterdrop, robust training", take_turns(robust, chosen), "drop 0", {}, chosen)
    for adapters in (1, chosen.adapters):
        use = {"no adapter": infer(ids, chosen.size, None, 1)}
        use |= {f"drop {k}": infer(ids, chosen.size, k, adapters) for k in drops}
        name = f"adapterdrop, inference, adapters: {adapters}"
        report(name, take_turns(use, chosen), "drop 0", {}, chosen)


def step(ids: torch.Tensor, size: int, drop: int, robust: bool = False) -> Callable[[], object]:
    """Forward and backward with the first layers left out."""
    host = deltatune.Host(llama())
    host.attach("a", AdapterDrop(size=size, drop=drop, robust=robust))
    host.model.train()
    return stepper(host.model, ids)


def infer(ids: torch.Tensor, size: int, drop: int | None, adapters: int) -> Callable[[], object]:
    """A forward without gradients; of several adapters, each acts on its share of the rows."""
    host = deltatune.Host(llama().eval())
    names = [] if drop is None else [f"a{i}" for i in range(adapters)]
    for i, name in enumerate(names):
        host.attach(name, AdapterDrop(size=size, drop=drop or 0), seed=i)
    wake_(host.model)
    host.use([names[row % adapters] for row in range(len(ids))] if adapters > 1 else names[0] if names else None)

    @torch.no_grad()
    def forward() -> None:
        host.model(input_ids=ids)

    return forward


if __name__ == "__main__":
    main()
