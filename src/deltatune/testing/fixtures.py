"""What the laws have in common: a fresh host, an adapter off its initial values, outputs row by row."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from deltatune.core.adapter import Adapter
from deltatune.core.delta import generator_for
from deltatune.core.host import Host
from deltatune.core.method import Method
from deltatune.methods.adapters.bottleneck import Bottleneck
from deltatune.methods.low_rank.lora import LoRA
from deltatune.testing.tiny_models import Head, Kind, tiny

Batch = Mapping[str, Any]

OTHER: Method = LoRA(r=2, sites="*.{q,o}") + Bottleneck(size=3, form="parallel")
"""The adapter that shares a model with the one under test: inside attention, at its end, and over the FFN."""


def make_host(kind: Kind | str, head: Head = None, dtype: torch.dtype = torch.float32) -> Host:
    """Make a Host on a fresh tiny model without dropout."""
    model = tiny(kind, head, dropout=False).to(dtype)  # type: ignore[arg-type]
    if dtype == torch.float64:
        _widen_norms_(model)
    return Host(model)


def _widen_norms_(model: nn.Module) -> None:
    """Let RMS norms compute in their weight's dtype: transformers' compute in float32, too coarse for differences."""
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.forward = partial(_rms_norm, module)


def _rms_norm(module: Any, x: Tensor) -> Tensor:
    scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + module.variance_epsilon)
    out: Tensor = module.weight * (x * scale)
    return out


def attach(host: Host, name: str, method: Method, *, seed: int = 0) -> Adapter:
    """Attach a method and move every tensor off its initial value, so that nothing is hidden behind zeros."""
    adapter = host.attach(name, method, seed=seed)
    with torch.no_grad():
        for key, parameter in adapter.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator_for(seed + 1, key))
            parameter.add_(0.1 * noise.to(parameter))
    return adapter


def forward(model: nn.Module, batch: Batch) -> Tensor:
    """First output of the model: logits (B, C) or hidden states (B, T, D)."""
    out: Tensor = model(**batch)[0]
    return out


@torch.no_grad()
def outputs(host: Host, batch: Batch) -> Tensor:
    """First output without gradients."""
    return forward(host.model, batch)


def real_rows(host: Host, out: Tensor) -> list[Tensor]:
    """Each row of hidden states (B, T, D) without padding, virtual tokens included; decoder states as they are."""
    mask = host.mask
    if mask is None or host.sites.facts.encoder_decoder:
        return list(out)
    return [row[kept.bool()] for row, kept in zip(out, mask, strict=True)]


def row_alone(batch: Batch, row: int) -> dict[str, Tensor]:
    """One row of a batch as a batch of its own, without its padding."""
    kept = batch["attention_mask"][row].bool()
    fed = {"input_ids", "attention_mask", "position_ids"}
    return {name: (t[row : row + 1, kept] if name in fed else t[row : row + 1]) for name, t in batch.items()}


def probe_loss(rows: list[Tensor]) -> Tensor:
    """A loss whose gradient is different for every element: outputs times fixed random numbers, summed over rows."""
    total = torch.zeros((), dtype=rows[0].dtype)
    for out in rows:
        weights = torch.randn(out.shape, generator=generator_for(0, "loss")).to(out)
        total = total + (out * weights).sum()
    return total


def gradients(host: Host, *names: str) -> dict[str, Tensor]:
    """Gradients of some adapters' parameters, zeros where there are none yet; they are cleared."""
    found = {}
    for name in names:
        for key, parameter in host.trainable(name):
            found[f"{name}.{key}"] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = None
    return found


def assert_equal(found: Tensor, wanted: Tensor, what: str) -> None:
    """Raise AssertionError unless two tensors have the same bits."""
    if not torch.equal(found, wanted):
        raise AssertionError(f"{what}: {_difference(found, wanted)}")


def assert_close(found: Tensor, wanted: Tensor, what: str, within: float = 2e-5) -> None:
    """Raise AssertionError unless the largest difference is below `within` times the largest value (at least 1)."""
    if found.shape != wanted.shape:
        raise AssertionError(f"{what}: shape {tuple(found.shape)}, not {tuple(wanted.shape)}")
    scale = max(1.0, float(wanted.abs().max())) if wanted.numel() else 1.0
    if not float((found - wanted).abs().max() if wanted.numel() else 0.0) <= within * scale:
        raise AssertionError(f"{what}: {_difference(found, wanted)}, allowed {within * scale:.1e}")


def _difference(found: Tensor, wanted: Tensor) -> str:
    if found.shape != wanted.shape:
        return f"shape {tuple(found.shape)}, not {tuple(wanted.shape)}"
    return f"they differ by up to {float((found.double() - wanted.double()).abs().max()):.1e}"
