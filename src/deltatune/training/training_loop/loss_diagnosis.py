"""Diagnosis of a loss or a gradient that is not finite: what holds or makes the first NaN, by measurement."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deltatune.core.host import Host
from deltatune.store.tensors import not_finite

MOST_NAMED = 4
Pass = Callable[[], Mapping[str, Tensor]]
"""One forward pass of the step: its loss and logits."""


@dataclass(frozen=True)
class Rates:
    """Learning rates of the run, for the advice."""

    last: float
    """The largest rate of a step so far; 0 before the first one."""
    recommended: float
    """The method's own."""


def diagnosis(
    host: Host, name: str, batches: Sequence[Mapping[str, Any]], passes: Sequence[Pass], rates: Rates, measured: bool
) -> str:
    """Why training adapter `name` gave a loss or gradients that are not finite, and what to do about it.

    batches, passes: the arguments of each forward pass of the step, and the passes themselves, to run again. measured:
    whether they may be run again; with several processes they may not, because each would have to.
    """
    adapter = host.adapters[name]
    buffers = {n: buffer for n, buffer in host.model.named_buffers() if not n.startswith("deltatune.")}
    plain = [path for path, site in host.sites.weights.items() if not site.quantized]  # scales of codes are buffers
    weights = {path: host.base.tensor(path) for path in plain}
    if damaged := not_finite({n: t for n, t in {**weights, **buffers}.items() if t.numel()}):
        return (
            f"the model's own weights are damaged:{listed(damaged)}\nload another copy of the model; weights become "
            "infinite when they are cast to float16"
        )
    if damaged := not_finite(adapter.tensors()):
        if not rates.last:
            return f"the adapter's tensors were so before training:{listed(damaged)}\nattach or load another one"
        return f"earlier steps made the adapter's tensors so:{listed(damaged)}\n{lower(rates)}"
    inputs = {n: t for batch in batches for n, t in batch.items() if isinstance(t, Tensor) and t.is_floating_point()}
    if damaged := not_finite(inputs):
        return (
            f"the rows of this step are so:{listed(damaged)}\ncorrect the labels, or the model that made the features"
        )
    if not measured:
        return f"no weight and no label is; {lower(rates)}"
    bad = next((i for i, run in enumerate(passes) if not finite_loss(run)), None)
    if bad is None:
        return f"a second pass over the same rows, with other dropout, is finite; {lower(rates)}"
    place = first_not_finite(host.model, passes[bad])
    if fails_alone(host, passes[bad]):
        return f"the model without the adapter gives no finite output for these rows either{place}\n{overflow(host)}"
    if place:
        text = f"with the adapter the model's outputs are not finite{place}"
    else:
        text = "the logits are finite, but not the loss"
        values = [float(tensor.abs().max()) for n, tensor in inputs.items() if n == "labels" and tensor.numel()]
        if values and max(values) > 1e15:
            return f"{text}: the labels go up to {max(values):.3g}; scale them"
    if not rates.last:
        return f"{text}, before any step was taken: the values that the method starts from are too large"
    largest, value = max(((n, float(t.abs().max())) for n, t in adapter.tensors().items()), key=lambda entry: entry[1])
    text += f"; the largest trained value is {value:.3g}, in {largest}"
    low = f"\nor run in float32, since {overflow(host)}" if "float16" in overflow(host) else ""
    return f"{text}\n{lower(rates)}{low}"


def gradients_text(gradients: Mapping[str, Tensor], host: Host, rates: Rates) -> str:
    """What is wrong with gradients whose norm is not finite."""
    if damaged := not_finite(gradients):
        return f"the loss is finite, but not these gradients:{listed(damaged)}\n{lower(rates)}, or {overflow(host)}"
    return f"each gradient is finite, but not their norm\n{lower(rates)}"


def lower(rates: Rates) -> str:
    """The advice for a rate that is too high."""
    if not rates.last:
        return "no step was taken before, so the learning_rate is not the cause"
    known = f", and the method's own is {rates.recommended:.2g}" if rates.last > rates.recommended else ""
    return f"lower the learning_rate: it was up to {rates.last:.2g} so far{known}"


def overflow(host: Host) -> str:
    """What to do about numbers that are too large for the base's dtype."""
    if host.model.dtype == torch.float16:
        return "the model is in float16, whose largest number is 65504: load it in float32 or bfloat16"
    return f"the model, in {str(host.model.dtype).removeprefix('torch.')}, overflows on these rows: check their texts"


def listed(problems: Sequence[str]) -> str:
    """Problems one a line, the first few."""
    more = [f"... and {len(problems) - MOST_NAMED} more"] if len(problems) > MOST_NAMED else []
    return "".join(f"\n  {problem}" for problem in [*problems[:MOST_NAMED], *more])


@torch.no_grad()
def finite_loss(run: Pass) -> bool:
    """Whether a pass has a finite loss."""
    return math.isfinite(float(run()["loss"]))


def fails_alone(host: Host, run: Pass) -> bool:
    """Whether the model without any adapter has outputs that are not finite."""
    with host.using(None, training=False):
        return bool(first_not_finite(host.model, run))


@torch.no_grad()
def first_not_finite(model: nn.Module, run: Pass) -> str:
    """The first module whose output is not finite, as ` (NaN first in NAME, DTYPE)`; empty if there is none."""
    first: list[str] = []

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        value = next((t for t in _tensors(output) if t.is_floating_point() and not torch.isfinite(t).all()), None)
        if value is not None and not first:
            kind = "NaN" if value.isnan().any() else "infinity"
            first.append(f" ({kind} first in {names[module]}, {str(value.dtype).removeprefix('torch.')})")

    names = {module: path or type(model).__name__ for path, module in model.named_modules()}
    handles = [module.register_forward_hook(hook) for module in names]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return first[0] if first else ""


def _tensors(output: Any) -> Iterable[Tensor]:
    """The first tensor of a module's output: what follows may be masks or caches."""
    if isinstance(output, (tuple, list)):
        output = output[0] if output else None
    if isinstance(output, Mapping):
        output = next(iter(output.values()), None)
    return [output] if isinstance(output, Tensor) else []
