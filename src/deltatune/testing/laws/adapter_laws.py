"""Laws of one adapter: identity, ownership, detaching, files, merging, counts, training, exact gradients."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deltatune.core.adapter import Adapter
from deltatune.core.budget import fit_budget
from deltatune.core.delta import Delta, generator_for
from deltatune.core.errors import CannotMerge
from deltatune.core.host import Host
from deltatune.core.merging import merge_obstacles
from deltatune.core.method import Method
from deltatune.testing.fixtures import (
    OTHER,
    Batch,
    assert_close,
    assert_equal,
    attach,
    forward,
    make_host,
    outputs,
    probe_loss,
)
from deltatune.testing.tiny_models import Kind, inputs

STEPS = 3
"""Optimiser steps in which every tensor must change: LoRA's A has gradient zero at the first, as B is zero."""
EPSILON = 1e-5
"""Step of the central differences."""


def starts_as_the_base(method: Method, kind: Kind) -> None:
    """Law 1: an adapter just attached changes nothing, unless `starts_as_base` is False."""
    host, batch = make_host(kind, "classify"), inputs(kind, "classify")
    base = outputs(host, batch)
    host.attach("a", method)
    if method.starts_as_base:
        assert_close(outputs(host, batch), base, "a new adapter changes the outputs", within=1e-6)
    elif torch.equal(outputs(host, batch), base):
        raise AssertionError("starts_as_base is False, but a new adapter changes nothing")


def only_its_own_gets_gradients(method: Method, kind: Kind) -> None:
    """Law 2: every trainable tensor of the active adapter gets a gradient, and nothing else."""
    host = make_host(kind, "classify")
    base = dict(host.model.named_parameters())
    adapter = attach(host, "a", method)
    idle = host.attach("idle", OTHER)
    host.use("a")
    host.model.train()
    probe_loss(list(forward(host.model, inputs(kind, "classify")))).backward()  # type: ignore[no-untyped-call]
    wrong = [f"{name} of the base has a gradient" for name, p in base.items() if p.grad is not None]
    wrong += [f"{name} of an idle adapter has a gradient" for name, p in idle.named_parameters() if p.grad is not None]
    wrong += [f"{name} of the base is not frozen" for name, p in base.items() if p.requires_grad]
    skippable = names_where(adapter, lambda delta: delta.hints.skippable)
    wrong += [f"{n} has no gradient" for n, p in host.trainable("a") if p.grad is None and n not in skippable]
    if wrong:
        raise AssertionError("; ".join(wrong))


def detaching_restores_the_base(method: Method, kind: Kind) -> None:
    """Law 3: detaching restores outputs, parameters and state-dict keys bit for bit."""
    host, batch = make_host(kind, "classify"), inputs(kind, "classify")
    config: Any = host.model.config
    attention = config._attn_implementation
    before, state = outputs(host, batch), {key: tensor.clone() for key, tensor in host.model.state_dict().items()}
    objects = {name: id(parameter) for name, parameter in host.model.named_parameters()}
    attach(host, "a", method)
    host.model.train()
    outputs(host, batch)
    host.model.eval()
    host.detach("a")
    after = host.model.state_dict()
    if list(after) != list(state):
        raise AssertionError(f"state-dict keys changed: {sorted(set(after) ^ set(state)) or 'their order'}")
    for key, tensor in state.items():
        assert_equal(after[key], tensor, f"{key} of the base changed")
    if {name: id(parameter) for name, parameter in host.model.named_parameters()} != objects:
        raise AssertionError("parameters of the base are other objects than before")
    if config._attn_implementation != attention:
        raise AssertionError(f"attention is {config._attn_implementation!r}, it was {attention!r}")
    assert_equal(outputs(host, batch), before, "outputs after detaching")


def files_keep_it(method: Method, kind: Kind) -> None:
    """Law 4: save, load: equal outputs. Save, load, save: equal bytes."""
    host, batch = make_host(kind, "classify"), inputs(kind, "classify")
    attach(host, "a", method)
    with tempfile.TemporaryDirectory() as folder:
        first, second = Path(folder) / "first", Path(folder) / "second"
        before = outputs(host, batch)
        host.save("a", first)
        assert_equal(outputs(host, batch), before, "outputs after saving")
        again = make_host(kind, "classify")
        again.load(first, name="a")
        assert_close(outputs(again, batch), before, "outputs after loading", within=1e-6)
        again.save("a", second)
        if _bytes(first) != _bytes(second):
            ours, theirs = _bytes(first), _bytes(second)
            other = sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
            raise AssertionError(f"saved, loaded and saved again, these files differ: {', '.join(other)}")


def merging_equals_live(method: Method, kind: Kind) -> None:
    """Law 5: merged equals unmerged within rounding; unmerging restores the bits. Others refuse to merge."""
    for dtype in (torch.float32, torch.bfloat16):
        host, batch = make_host(kind, "classify", dtype), inputs(kind, "classify")
        state = {key: tensor.clone() for key, tensor in host.model.state_dict().items()}
        adapter = attach(host, "a", method)
        unmerged = outputs(host, batch)
        if not adapter.merges:
            _must_refuse_to_merge(host)
            continue
        try:
            host.merge_("a")
        except CannotMerge:
            # It merges in general, but a site here lacks a parameter it merges into, or shares it with another module.
            if merge_obstacles(adapter):
                continue
            raise
        rounding = 1e-5 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
        assert_close(outputs(host, batch), unmerged, f"merged and unmerged in {dtype}", within=rounding)
        host.unmerge_("a")
        assert_equal(outputs(host, batch), unmerged, f"outputs after unmerging in {dtype}")
        host.detach("a")
        after = host.model.state_dict()
        for key, tensor in state.items():
            assert_equal(after[key], tensor, f"{key} after unmerging in {dtype}")


def counts_what_it_trains(method: Method, kind: Kind) -> None:
    """Law 9: `count(sites)` is the number of parameters that exist, heads left out."""
    for head in (None, "classify"):
        host = make_host(kind, head)
        adapter = host.attach("a", method)
        counted = method.count(host.sites)
        real = sum(p.numel() for n, p in host.trainable("a")) - adapter.head_count
        if not counted == adapter.count == real:
            raise AssertionError(f"count(sites) says {counted:,}, the adapter {adapter.count:,}, its tensors {real:,}")
        if (head is not None) != (adapter.head_count > 0):
            raise AssertionError(f"the model's head is {head}, the adapter's head has {adapter.head_count} parameters")


def a_budget_is_met_from_below(method: Method, kind: Kind) -> None:
    """Law 9: a budget gives the largest size that fits it; a method without a size is returned unchanged."""
    sites = make_host(kind).sites
    if method.size is None:
        if fit_budget(method, sites, 1) != method:
            raise AssertionError("a budget changed a method that has no size")
        return
    smallest, limit = method.sized(1).count(sites), method.limit(sites)
    for budget in (smallest, smallest + 1, 2 * smallest + 1, 5 * smallest, 7 * smallest - 1):
        fitted = fit_budget(method, sites, budget)
        size = fitted.size or 0
        if fitted.count(sites) > budget:
            raise AssertionError(f"{fitted!r} has {fitted.count(sites):,} parameters, more than the budget {budget:,}")
        if size < limit and method.sized(size + 1).count(sites) <= budget:
            raise AssertionError(f"{fitted!r} is not the largest for the budget {budget:,}")
    for small in range(1, 9):
        if method.sized(small).count(sites) > method.sized(small + 1).count(sites):
            raise AssertionError(f"a larger size has fewer parameters: {small} and {small + 1}")


def steps_move_everything(method: Method, kind: Kind) -> None:
    """Law 10: a few optimiser steps from the initial values change every trainable tensor, and none of the base."""
    host, batch = make_host(kind, "classify"), inputs(kind, "classify")
    base = {name: (parameter, parameter.clone()) for name, parameter in host.model.named_parameters()}
    skippable = names_where(host.attach("a", method), lambda delta: delta.hints.skippable)
    trained = {n: (p, p.detach().clone()) for n, p in host.trainable("a") if n not in skippable}
    host.model.train()
    optimiser = torch.optim.AdamW([parameter for parameter, _ in trained.values()], lr=1e-2, weight_decay=0.0)
    for _ in range(STEPS):
        optimiser.zero_grad()
        probe_loss(list(forward(host.model, batch))).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    still = [name for name, (parameter, before) in trained.items() if torch.equal(parameter, before)]
    moved = [name for name, (parameter, before) in base.items() if not torch.equal(parameter, before)]
    if still or moved:
        raise AssertionError(f"not moved after {STEPS} steps: {still or 'none'}; moved in the base: {moved or 'none'}")


def gradients_are_exact(method: Method, kind: Kind) -> None:
    """Law 12: gradients agree with central differences in float64, along a random direction of all tensors.

    Those of Deltas that declare `Capabilities(exact=False)` are left out.
    """
    host, batch = make_host(kind, "classify", torch.float64), inputs(kind, "classify", rows=2, length=4)
    exact = names_where(attach(host, "a", method), lambda delta: delta.capabilities.exact)
    probe_loss(list(forward(host.model, batch))).backward()  # type: ignore[no-untyped-call]
    trained = {n: p for n, p in host.trainable("a") if n in exact or n.startswith(("head.", "shared."))}
    if _slope_error(host, batch, trained) > 1e-6:
        wrong = {name: _slope_error(host, batch, {name: parameter}) for name, parameter in trained.items()}
        shown = [f"{name} (off by {error:.1e} of the slope)" for name, error in wrong.items() if error > 1e-6]
        raise AssertionError(f"gradients that differ from central differences: {', '.join(shown)}")


@torch.no_grad()
def _slope_error(host: Host, batch: Batch, parameters: Mapping[str, nn.Parameter]) -> float:
    """Difference of the loss's slope along one random direction, from gradients and from two forwards, relative."""
    directions = {name: torch.randn(p.shape, generator=generator_for(0, name)).to(p) for name, p in parameters.items()}
    length = torch.stack([direction.norm() for direction in directions.values()]).norm()
    before = {name: parameter.clone() for name, parameter in parameters.items()}
    losses = []
    for step in (EPSILON, -EPSILON):
        for name, parameter in parameters.items():
            parameter.copy_(before[name] + step / length * directions[name])
        losses.append(probe_loss(list(forward(host.model, batch))))
    for name, parameter in parameters.items():
        parameter.copy_(before[name])
    numeric = float(losses[0] - losses[1]) / (2 * EPSILON)
    slopes = (p.grad * directions[name] for name, p in parameters.items() if p.grad is not None)
    exact = sum(float(slope.sum() / length) for slope in slopes)
    return abs(exact - numeric) / max(1.0, abs(numeric))


def names_where(adapter: Adapter, condition: Callable[[Delta], bool]) -> set[str]:
    """Names of the parameters of the Deltas that satisfy a condition."""
    deltas = [(path, delta) for path, delta in adapter.named_deltas() if condition(delta)]
    return {f"{path}.{name}" for path, delta in deltas for name, _ in delta.named_parameters()}


def _must_refuse_to_merge(host: Host) -> None:
    try:
        host.merge_("a")
    except CannotMerge:
        return
    raise AssertionError("a Delta declares that it does not merge, but merge_ was accepted")


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
