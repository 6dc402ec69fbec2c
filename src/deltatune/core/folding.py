"""Folding: writing an adapter into the base's weights, checked on probe inputs, and taking it out again bit for bit."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from deltatune.core.adapter import Adapter
from deltatune.core.base import Base, check_whole
from deltatune.core.delta import Delta
from deltatune.core.errors import raise_all
from deltatune.core.probing import probe_inputs
from deltatune.core.sites import Facts


def obstacles(adapter: Adapter) -> list[str]:
    """Why an adapter cannot be folded: Deltas without a weight form, biases that the base lacks. Empty if it can."""
    stuck = sorted({type(delta).__name__ for _, _, delta in adapter.entries() if not delta.folds})
    missing = [
        f"site {site.name} has no bias to fold into"
        for _, site, delta in adapter.entries()
        if delta.folds and getattr(delta, "needs_bias", False) and not site.bias
    ]
    tied = [
        f"the weight at {site.name} is tied to another module's, which would change with it"
        for _, site, delta in adapter.entries()
        if site.tied and delta.folds and not getattr(delta, "needs_bias", False)
    ]
    return [f"{kind} has no exact weight form" for kind in stuck] + missing + tied


def check_folds(name: str, adapter: Adapter, model: nn.Module) -> None:
    """Raise unless every Delta has a weight form here, naming those that have none."""
    check_whole(model, f"folding {name!r}", "save the adapter, and fold it where the base is whole")
    found = obstacles(adapter)
    raise_all(found, f"adapter {name!r} ({adapter.method!r}) cannot be folded; keep it live:" if found else "")


@torch.no_grad()
def write_adapter(model: nn.Module, adapter: Adapter) -> None:
    """Write every Delta of an adapter into the base's parameters in place.

    Live, all Deltas of a module see what the base alone computes there, so their changes of its weights add up; those
    of its input come last.
    """
    ports: dict[tuple[bool, str, str], list[tuple[Base, Delta]]] = {}
    for _, site, delta in adapter.entries():
        key = (site.kind == "input", site.module, site.attribute)
        ports.setdefault(key, []).append((Base(model.get_submodule(site.module), site), delta))
    for key in sorted(ports, key=lambda key: key[0]):
        _write(ports[key])


def _write(changes: list[tuple[Base, Delta]]) -> None:
    """Write the changes of one module, each computed from its parameters as they were before."""
    alone = len(changes) == 1
    new: dict[str, Tensor] = {}
    old = {name: tensor.clone() for name, tensor in ({} if alone else changes[0][0].stored()).items()}
    for base, delta in changes:
        params = base.parameters()
        if not alone:  # added up in double precision, rounded once
            params = {name: tensor.double() for name, tensor in params.items()}
        for name, tensor in delta.fold(params).items():
            if alone:
                new[name] = base.placed(name, tensor)
            else:
                grown = base.placed(name, tensor).double() - old[name].double()
                new[name] = new.get(name, old[name].double()) + grown
    stored = changes[0][0].stored()
    for name, tensor in new.items():
        stored[name].copy_(tensor)


def touched(model: nn.Module, adapter: Adapter) -> list[Tensor]:
    """Base parameters that folding an adapter may change."""
    found = [
        t for _, site, _ in adapter.entries() for t in Base(model.get_submodule(site.module), site).stored().values()
    ]
    return list({id(tensor): tensor for tensor in found}.values())


@torch.no_grad()
def probe(model: nn.Module, facts: Facts) -> Tensor | None:
    """Output of the model on fixed random inputs, or None where what it reads is not known."""
    batch = probe_inputs(model, facts)
    if batch is None:
        return None
    training = model.training
    try:
        outputs = model.eval()(**batch)
    finally:
        model.train(training)
    found: Tensor = outputs["logits"] if "logits" in outputs else outputs[0]
    return found.float()


def difference(live: Tensor | None, folded: Tensor | None) -> float:
    """Largest absolute difference of two probe outputs; 0 where there are none."""
    return 0.0 if live is None or folded is None else float((live - folded).abs().max())


def bound(live: Tensor | None, dtype: torch.dtype) -> float:
    """Largest difference that the dtype's rounding explains."""
    scale = 1.0 if live is None else max(1.0, float(live.abs().max()))
    return scale * max(1e-5, 32 * torch.finfo(dtype).eps)


def restore(originals: Mapping[int, tuple[Tensor, Tensor]]) -> None:
    """Give every parameter its original bits back."""
    with torch.no_grad():
        for parameter, original in originals.values():
            parameter.copy_(original)
