"""Laws of several adapters on one model: mixed rows, their gradients, checkpointing, the order of attaching."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deltatune.core.errors import DeltatuneError
from deltatune.core.host import Host
from deltatune.core.method import Method
from deltatune.core.route import RouteSpec
from deltatune.testing.fixtures import (
    OTHER,
    Batch,
    assert_close,
    assert_equal,
    attach,
    forward,
    gradients,
    make_host,
    outputs,
    probe_loss,
    real_rows,
    row_alone,
)
from deltatune.testing.tiny_models import ENCODER_DECODERS, RIGHT_PADDED, Kind, inputs

ROUTE: list[str | dict[str, float] | None] = ["a", "other", None, {"a": 0.7, "other": 0.4}, "a", {"a": -0.5}]
"""The adapter under test, another, the bare base, a weighted mix, and the first again, last with weight -0.5."""
RUNS: list[str | dict[str, float] | None] = ["a", {"a": -0.5}, None, "other", "other", None]
"""Each adapter on rows that follow each other, which are cut out of the batch."""


def mixed_rows_equal_rows_alone(method: Method, kind: Kind) -> None:
    """Law 6: each row of a batch of different adapters equals that row alone. Methods that do not mix refuse."""
    host = _two(method, kind)
    if not host.adapters["a"].mixes:
        _must_refuse_to_mix(host)
        return
    alone: dict[str, Tensor] = {}
    """Outputs of single rows by their route and tokens, which are the same on either side of the padding."""
    for padding in ("right", "none") if kind in RIGHT_PADDED else ("right", "left", "none"):
        batch = _batch(kind, padding)
        for route in (ROUTE, RUNS):
            host.use(route)
            together = real_rows(host, outputs(host, batch))
            for row, entry in enumerate(route):
                one = row_alone(batch, row)
                key = f"{entry} {[tensor.tolist() for name, tensor in one.items() if name != 'position_ids']}"
                if key not in alone:
                    host.use(entry)
                    alone[key] = real_rows(host, outputs(host, one))[0]
                what = f"row {row}, routed {entry!r}, padding {padding}, with others and alone"
                assert_close(together[row], alone[key], what)


def mixed_gradients_equal_rows_alone(method: Method, kind: Kind) -> None:
    """Law 6 in training: gradients of a mixed batch are the sum of those of its rows alone."""
    host = _two(method, kind)
    if not host.adapters["a"].mixes:
        return
    host.model.train()
    for adapter in host.adapters.values():
        adapter.eval()  # without dropout, which draws other numbers for a row alone
    batch = _batch(kind, "right")
    for route in (ROUTE, RUNS):
        host.use(route)
        _backward(host, batch)
        together = gradients(host, "a", "other")
        for row, entry in enumerate(route):
            if entry is not None:
                host.use(entry)
                _backward(host, row_alone(batch, row))
        for key, alone in gradients(host, "a", "other").items():
            assert_close(together[key], alone, f"gradient of {key} in a mixed batch", within=1e-4)


def checkpointing_changes_no_gradient(method: Method, kind: Kind) -> None:
    """Law 7: with gradient checkpointing, gradients are the same, in mixed batches and with dropout too."""
    host, batch = _two(method, kind), _batch(kind, "right")
    routes: list[RouteSpec] = ["a", ROUTE] if host.adapters["a"].mixes else ["a"]
    model: Any = host.model.train()
    if not model.supports_gradient_checkpointing:
        return
    model.config.use_cache = False
    plain = [_gradients_on(host, route, batch) for route in routes]
    enable = "activation_checkpointing_enable"  # transformers 5.0 knows the older name alone
    getattr(model, enable if hasattr(model, enable) else "gradient_checkpointing_enable")({"use_reentrant": False})
    for route, wanted in zip(routes, plain, strict=True):
        for key, recomputed in _gradients_on(host, route, batch).items():
            what = f"gradient of {key} under checkpointing, route {route!r}"
            assert_close(recomputed, wanted[key], what, within=1e-5)


def the_order_of_attaching_is_free(method: Method, kind: Kind) -> None:
    """Law 11: attaching a, then b, equals attaching b, then a: initial tensors and outputs."""
    hosts = []
    for names in (("a", "other"), ("other", "a")):
        host = make_host(kind)
        for name in names:
            host.attach(name, method if name == "a" else OTHER, seed=3)
        hosts.append(host)
    first, second = hosts
    for name in ("a", "other"):
        tensors = second.adapters[name].tensors()
        for key, tensor in first.adapters[name].tensors().items():
            assert_equal(tensors[key], tensor, f"initial {key} depends on the order of attaching")
    for host, names in ((first, ("a", "other")), (second, ("other", "a"))):
        for name in names:
            host.detach(name)
        for name in names:
            attach(host, name, method if name == "a" else OTHER, seed=3)
    mixes = first.adapters["a"].mixes
    batch = inputs(kind)
    routes: list[RouteSpec] = ["a", "other"] + ([{"a": 0.7, "other": 0.4}] if mixes else [])
    for route in routes:
        first.use(route)
        second.use(route)
        assert_close(outputs(second, batch), outputs(first, batch), f"outputs for {route!r}, attached the other way")


def _two(method: Method, kind: Kind) -> Host:
    host = make_host(kind)
    attach(host, "a", method)
    attach(host, "other", OTHER, seed=7)
    return host


def _batch(kind: Kind, padding: str) -> Batch:
    batch = inputs(kind, rows=len(ROUTE), length=7, padding=padding)  # type: ignore[arg-type]
    if padding == "left" and kind not in ENCODER_DECODERS:  # as generate() does: positions count real tokens
        batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    return batch


def _backward(host: Host, batch: Batch) -> None:
    out: Tensor = forward(host.model, batch)
    loss = probe_loss(real_rows(host, out))
    if loss.requires_grad:  # Probe() on a model without a head trains nothing
        loss.backward()  # type: ignore[no-untyped-call]


def _gradients_on(host: Host, route: RouteSpec, batch: Batch) -> dict[str, Tensor]:
    host.use(route)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _backward(host, batch)
    return gradients(host, "a")


def _must_refuse_to_mix(host: Host) -> None:
    for route in (ROUTE, {"a": 0.5}, {"a": 1.0, "other": 1.0}):
        try:
            host.use(route)
        except DeltatuneError:
            continue
        raise AssertionError(f"a Delta declares that it does not mix, but the route {route!r} was accepted")
