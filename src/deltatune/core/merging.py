"""Fixed random inputs of any model, to compare what it computes before and after a change: tokens, images or sounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from deltatune.core.adapter import Adapter
from deltatune.core.delta import Delta, generator_for
from deltatune.core.errors import raise_all
from deltatune.core.sites.base_weights import Base, check_whole
from deltatune.core.sites.site import Facts


def probe_inputs(model: nn.Module, facts: Facts) -> dict[str, Tensor] | None:
    """Arguments for two rows on the model's device, or None where what it reads is not known."""
    generator = generator_for(0, "probe")
    first = str(getattr(model, "main_input_name", "input_ids"))
    if first == "input_ids":
        batch = _tokens(model, facts, generator) if facts.vocabulary else None
    else:
        shape = _shape(model, first)
        batch = None if shape is None else {first: torch.randn(2, *shape, generator=generator)}
    if batch is None:
        return None
    if facts.encoder_decoder and facts.vocabulary:
        batch["decoder_input_ids"] = batch.get("input_ids", _ids(model, facts, generator))
    like = next(p for p in model.parameters() if p.is_floating_point())
    return {name: t.to(like.device, like.dtype if t.is_floating_point() else t.dtype) for name, t in batch.items()}


def _tokens(model: nn.Module, facts: Facts, generator: torch.Generator) -> dict[str, Tensor]:
    ids = _ids(model, facts, generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _ids(model: nn.Module, facts: Facts, generator: torch.Generator) -> Tensor:
    """Token ids (2, 8). T5's and BART's classifiers read the end token, of which each row must have as many."""
    ids = torch.randint(0, facts.vocabulary, (2, 8), generator=generator)
    end = getattr(model.config, "eos_token_id", None)
    if isinstance(end, int):
        ids[ids == end] = (end + 1) % facts.vocabulary
        ids[:, -1] = end
    return ids


def _shape(model: nn.Module, name: str) -> tuple[int, ...] | None:
    """Shape of one row of images or sounds, from what the config says of them."""
    config: Any = model.config
    bins: Any = getattr(config, "num_mel_bins", None)
    if name == "pixel_values" and hasattr(config, "image_size"):
        size = config.image_size
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        return getattr(config, "num_channels", 3), height, width
    if name == "input_features" and hasattr(config, "max_source_positions"):  # Whisper: two frames a position
        return bins, 2 * config.max_source_positions
    if name == "input_values" and bins and hasattr(config, "max_length"):  # spectrograms (AST)
        return config.max_length, bins
    if name == "input_values":  # samples: enough for some frames of any usual convolution
        return (4000,)
    return None


def obstacles(adapter: Adapter) -> list[str]:
    """Why an adapter cannot be merged: Deltas without a weight form, biases that the base lacks. Empty if it can."""
    stuck = sorted({type(delta).__name__ for _, _, delta in adapter.entries() if not delta.merges})
    missing = [
        f"site {site.name} has no bias to merge into"
        for _, site, delta in adapter.entries()
        if delta.merges and getattr(delta, "needs_bias", False) and not site.bias
    ]
    tied = [
        f"the weight at {site.name} is tied to another module's, which would change with it"
        for _, site, delta in adapter.entries()
        if site.tied and delta.merges and not getattr(delta, "needs_bias", False)
    ]
    return [f"{kind} has no exact weight form" for kind in stuck] + missing + tied


def check_merges(name: str, adapter: Adapter, model: nn.Module) -> None:
    """Raise unless every Delta has a weight form here, naming those that have none."""
    check_whole(model, f"merging {name!r}", "save the adapter, and merge it where the base is whole")
    found = obstacles(adapter)
    raise_all(found, f"adapter {name!r} ({adapter.method!r}) cannot be merged; keep it live:" if found else "")


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
        for name, tensor in delta.merge(params).items():
            if alone:
                new[name] = base.placed(name, tensor)
            else:
                grown = base.placed(name, tensor).double() - old[name].double()
                new[name] = new.get(name, old[name].double()) + grown
    stored = changes[0][0].stored()
    for name, tensor in new.items():
        stored[name].copy_(tensor)


def touched(model: nn.Module, adapter: Adapter) -> list[Tensor]:
    """Base parameters that merging an adapter may change."""
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


def difference(live: Tensor | None, merged: Tensor | None) -> float:
    """Largest absolute difference of two probe outputs; 0 where there are none."""
    return 0.0 if live is None or merged is None else float((live - merged).abs().max())


def bound(live: Tensor | None, dtype: torch.dtype) -> float:
    """Largest difference that the dtype's rounding explains."""
    scale = 1.0 if live is None else max(1.0, float(live.abs().max()))
    return scale * max(1e-5, 32 * torch.finfo(dtype).eps)


def restore(originals: Mapping[int, tuple[Tensor, Tensor]]) -> None:
    """Give every parameter its original bits back."""
    with torch.no_grad():
        for parameter, original in originals.values():
            parameter.copy_(original)
