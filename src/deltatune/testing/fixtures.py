"""Fixtures of the laws: a fresh host, plain or quantised, an adapter off its initial values, outputs row by row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from deltatune.core.adapter import Adapter
from deltatune.core.delta import generator_for
from deltatune.core.host import Host
from deltatune.core.method import Method
from deltatune.core.quantization.schemes import Scheme, read_scheme
from deltatune.methods.adapters.bottleneck import Bottleneck
from deltatune.methods.low_rank.lora import LoRA
from deltatune.models.quantization.quantize_model import quantize_
from deltatune.testing.tiny_models import Head, Kind, tiny

Batch = Mapping[str, Any]

OTHER: Method = LoRA(r=2, sites="*.{q,o}") + Bottleneck(size=3, form="parallel")
"""The adapter that shares a model with the one under test: inside attention, at its end, and over the FFN."""


_scheme: ContextVar[Scheme | None] = ContextVar("_scheme", default=None)


@contextmanager
def quantized_bases(scheme: str | Scheme | None) -> Iterator[None]:
    """Within it, the linear maps in the blocks of every model that `make_host` makes are quantised."""
    token = _scheme.set(read_scheme(scheme))
    try:
        yield
    finally:
        _scheme.reset(token)


def make_host(kind: Kind | str, head: Head = None, dtype: torch.dtype = torch.float32) -> Host:
    """Make a Host on a fresh tiny model without dropout, quantised within `quantized_bases`."""
    model = tiny(kind, head, dropout=False).to(dtype)  # type: ignore[arg-type]
    if (scheme := _scheme.get()) is not None:
        quantize_(model, scheme)
    if dtype == torch.float64:
        _widen_norms_(model)
    return Host(model)


def _widen_norms_(model: nn.Module) -> None:
    """Let RMS norms compute in their weight's dtype: transformers' float32 is too coarse for finite differences."""
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.forward = partial(_rms_norm, module)


def _rms_norm(module: Any, x: Tensor) -> Tensor:
    scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + module.variance_epsilon)
    out: Tensor = module.weight * (x * scale)
    return out


def attach(host: Host, name: str, method: Method, *, seed: int = 0) -> Adapter:
    """Attach a method and move every tensor off its initial value, so that zeros hide nothing."""
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
    return [row[real.bool()] for row, real in zip(out, mask, strict=True)]


def row_alone(batch: Batch, row: int) -> dict[str, Tensor]:
    """One row of a batch as a batch of its own, without its padding."""
    real = batch["attention_mask"][row].bool()
    per_token = {"input_ids", "attention_mask", "position_ids"}
    return {name: (t[row : row + 1, real] if name in per_token else t[row : row + 1]) for name, t in batch.items()}


def probe_loss(rows: list[Tensor]) -> Tensor:
    """A loss whose gradient is different for every element: outputs times fixed random numbers, summed over rows."""
    total = torch.zeros((), dtype=rows[0].dtype)
    for out in rows:
        weights = torch.randn(out.shape, generator=generator_for(0, "loss")).to(out)
        total = total + (out * weights).sum()
    return total


def gradients(host: Host, *names: str) -> dict[str, Tensor]:
    """Gradients of some adapters' parameters, zeros where there are none yet; they are cleared."""
    collected = {}
    for name in names:
        for key, parameter in host.trainable(name):
            collected[f"{name}.{key}"] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = None
    return collected


def assert_equal(actual: Tensor, expected: Tensor, what: str) -> None:
    """Raise AssertionError unless two tensors have the same bits."""
    if not torch.equal(actual, expected):
        raise AssertionError(f"{what}: {_difference(actual, expected)}")


def assert_close(actual: Tensor, expected: Tensor, what: str, within: float = 2e-5) -> None:
    """Raise AssertionError unless the largest difference is below `within` times the largest value (at least 1)."""
    if actual.shape != expected.shape:
        raise AssertionError(f"{what}: shape {tuple(actual.shape)}, not {tuple(expected.shape)}")
    scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    if not float((actual - expected).abs().max() if expected.numel() else 0.0) <= within * scale:
        raise AssertionError(f"{what}: {_difference(actual, expected)}, allowed {within * scale:.1e}")


def _difference(actual: Tensor, expected: Tensor) -> str:
    if actual.shape != expected.shape:
        return f"shape {tuple(actual.shape)}, not {tuple(expected.shape)}"
    return f"they differ by up to {float((actual.double() - expected.double()).abs().max()):.1e}"
