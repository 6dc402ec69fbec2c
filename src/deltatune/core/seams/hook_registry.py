"""The hooks of one model: hook points where adapters change it, taps where they read it. Hooks stay; data changes."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from deltatune.core.adapter import Adapter
from deltatune.core.route import Route
from deltatune.core.seams.attention import HOOK_POINT
from deltatune.core.seams.hook_points import (
    BatchContext,
    ConvolutionHookPoint,
    EmbeddingHookPoint,
    HookPoint,
    InputHookPoint,
    InputTap,
    PluggedDelta,
)
from deltatune.core.sites.denoisers import check_unfused
from deltatune.core.sites.site import Site, Sites


class HookRegistry:
    """Every hook point and tap of one model, by module."""

    def __init__(self, model: nn.Module, sites: Sites, context: BatchContext) -> None:
        self.model, self.sites, self.context = model, sites, context
        self.hook_points: dict[tuple[str, str], HookPoint] = {}
        self.taps: dict[str, InputTap] = {}
        self.acting = False
        """Whether an adapter of the route acts through hooks."""
        if sites.facts.denoiser:
            self.attentions = [(path, module) for path, module in model.named_modules() if hasattr(module, "processor")]
            model.register_forward_pre_hook(self._check_unfused)

    def _check_unfused(self, module: nn.Module, args: object) -> None:
        """Pre-hook of a denoiser, whose callers may fuse projections at any time."""
        if self.acting and not torch.compiler.is_compiling():
            check_unfused(self.attentions)

    def plug(self, name: str, adapter: Adapter) -> None:
        """Enter an adapter's Deltas at their hook points. A soft prompt has one at every embedding."""
        for _, site, delta in adapter.entries():
            if site.kind == "weight":
                continue
            reads_in = site.kind == "sublayer" and any(part.reads != "output" for part in delta.parts)
            tap = self.tap(site) if reads_in or (site.kind == "kv" and delta.needs.attention_input) else None
            norm = self.model.get_submodule(site.norm) if site.norm else None
            prompt = delta.needs.virtual_tokens > 0
            for place in [s for s in self.sites.values() if s.kind == "embed"] if prompt else [site]:
                plugged = PluggedDelta(name, place, delta, tap, norm, partial(adapter.acts_at, site))
                self.hook_point(place).plugged.setdefault(name, []).append(plugged)

    def unplug(self, name: str) -> None:
        """Take an adapter's Deltas out."""
        for point in self.hook_points.values():
            point.plugged.pop(name, None)

    def follow(self, route: Route, active: set[str]) -> None:
        """Make hook points and taps follow a route; `active` are the names of what acts there."""
        self.acting = bool(active)
        for point in self.hook_points.values():
            point.follow(route, active)
        wanted = {id(p.tap) for point in self.hook_points.values() for stage in point.active for p in stage}
        for tap in self.taps.values():
            tap.wanted, tap.value = id(tap) in wanted, None

    @property
    def attention(self) -> tuple[bool, bool]:
        """Whether an active Delta works inside attention, and whether one makes the keys longer."""
        points = [point for (_, kind), point in self.hook_points.items() if kind == "kv"]
        deltas = [plugged.delta for point in points for stage in point.active for plugged in stage]
        return bool(deltas), any(delta.needs.longer_keys for delta in deltas)

    def hook_point(self, site: Site) -> HookPoint:
        """The hook point of a site's module, installed at first use."""
        key = (site.module, site.kind if site.kind in ("kv", "input") else "output")
        if key not in self.hook_points:
            self.hook_points[key] = _installed(self.model.get_submodule(site.module), site, self.context)
        return self.hook_points[key]

    def tap(self, site: Site) -> InputTap:
        """The tap at the module a sublayer starts with."""
        if site.read not in self.taps:
            self.taps[site.read] = InputTap()
            self.model.get_submodule(site.read).register_forward_pre_hook(self.taps[site.read])
        return self.taps[site.read]


def _installed(module: nn.Module, site: Site, context: BatchContext) -> HookPoint:
    if site.kind == "kv":
        setattr(module, HOOK_POINT, point := HookPoint(context))
        return point
    if site.kind == "input":
        module.register_forward_pre_hook((inlet := InputHookPoint(context)).before)
        return inlet
    if site.kind == "embed":
        module.register_forward_pre_hook((table := EmbeddingHookPoint(context, site.width_in)).before)
        module.register_forward_hook(table)
        return table
    point = HookPoint(context) if site.kernel is None else ConvolutionHookPoint(context, site.kernel)
    module.register_forward_hook(point)
    return point
