"""Folding: writing an adapter into the base's weights, checked on probe inputs, and taking it out again bit for bit."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from deltatune.core.adapter import Adapter
from deltatune.core.delta import generator_for
from deltatune.core.errors import raise_all
from deltatune.core.ports import put, take
from deltatune.core.sites import Facts, Site


def obstacles(adapter: Adapter) -> list[str]:
    """Why an adapter cannot be folded: Deltas without a weight form, biases that the base lacks. Empty if it can."""
    stuck = sorted({type(delta).__name__ for _, _, delta in adapter.entries() if not delta.folds})
    missing = [
        f"site {site.name} has no bias to fold into"
        for _, site, delta in adapter.entries()
        if delta.folds and getattr(delta, "needs_bias", False) and not site.bias
    ]
    return [f"{kind} has no exact weight form" for kind in stuck] + missing


def check_folds(name: str, adapter: Adapter) -> None:
    """Raise unless every Delta has a weight form here, naming those that have none."""
    found = obstacles(adapter)
    raise_all(found, f"adapter {name!r} ({adapter.method!r}) cannot be folded; keep it live:" if found else "")


@torch.no_grad()
def write_adapter(model: nn.Module, adapter: Adapter) -> None:
    """Write every Delta of an adapter into the base's parameters in place."""
    for _, site, delta in adapter.entries():
        module = model.get_submodule(site.module)
        params = _parameters(module, site)
        changed = delta.fold({name: _oriented(tensor, name, site) for name, tensor in params.items()})
        for name, tensor in changed.items():
            params[name].copy_(_stored(params[name], tensor, name, site))


def touched(model: nn.Module, adapter: Adapter) -> list[Tensor]:
    """Base parameters that folding an adapter may change."""
    found = [
        t for _, site, _ in adapter.entries() for t in _parameters(model.get_submodule(site.module), site).values()
    ]
    return list({id(tensor): tensor for tensor in found}.values())


def _parameters(module: nn.Module, site: Site) -> dict[str, Tensor]:
    if site.kind == "weight":
        return {site.attribute: getattr(module, site.attribute)}
    return dict(module.named_parameters())


def _oriented(tensor: Tensor, name: str, site: Site) -> Tensor:
    """A parameter as methods know it: weights (out, in), biases (out,), cut to the site's slice."""
    if site.kind != "linear":
        return tensor
    turned = tensor.T if site.transposed and name == "weight" else tensor
    return take(turned.T, site.slice).T if name == "weight" else take(turned, site.slice)


def _stored(whole: Tensor, part: Tensor, name: str, site: Site) -> Tensor:
    """The reverse of `_oriented`: the whole parameter with the site's part replaced."""
    if site.kind != "linear":
        return part
    if name != "weight":
        return put(whole, site.slice, part)
    turned = whole if site.transposed else whole.T  # (in, out)
    changed = put(turned, site.slice, part.T)
    return changed if site.transposed else changed.T


@torch.no_grad()
def probe(model: nn.Module, facts: Facts) -> Tensor | None:
    """Output of the model on fixed random token ids (2, 8), or None where it takes no token ids."""
    if not facts.vocabulary:
        return None
    ids = torch.randint(0, facts.vocabulary, (2, 8), generator=generator_for(0, "probe"))
    end = getattr(model.config, "eos_token_id", None)
    if isinstance(end, int):  # T5's and BART's classifiers read the end token, of which each row must have as many
        ids[ids == end] = (end + 1) % facts.vocabulary
        ids[:, -1] = end
    ids = ids.to(next(model.parameters()).device)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if facts.encoder_decoder:
        batch["decoder_input_ids"] = ids
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
