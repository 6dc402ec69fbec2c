"""The hooks of one model: hook points where adapters change it, taps where they read it. Hooks stay; data changes."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from deltatune.core.adapter import Adapter
from deltatune.core.errors import DeltatuneError
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
        self.places: list[tuple[HookPoint, nn.Module, dict[str, nn.Module | None], str, str]] = []
        """Hook points, their modules, and where these are: all of the module above, the name there, the path."""
        self.tables: list[tuple[EmbeddingHookPoint, nn.Module, str]] = []
        """Hook points of embeddings, these, and their paths."""
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
            module = self.model.get_submodule(site.module)
            self.hook_points[key] = _installed(module, site, self.context)
            above, _, leaf = site.module.rpartition(".")
            modules = self.model.get_submodule(above)._modules
            self.places.append((point := self.hook_points[key], module, modules, leaf, site.module))
            if isinstance(point, EmbeddingHookPoint):
                self.tables.append((point, module, site.module))
        return self.hook_points[key]

    def check_in_place(self) -> None:
        """Raise DeltatuneError if a module at which a Delta acts was replaced, so that nobody calls it, or resized."""
        for point, module, modules, leaf, path in self.places:
            if modules.get(leaf) is not module and leaf and point.active:
                there = modules.get(leaf)
                if there is None or all(part is not module for part in there.modules()):  # one around it calls it
                    raise _changed(path, f"is another {type(there).__name__} than adapters were attached to")
        for table, module, path in self.tables:
            rows = getattr(module, "num_embeddings", table.vocabulary)
            if rows != table.vocabulary and table.active:
                raise _changed(path, f"has {rows:,} tokens, and had {table.vocabulary:,}")

    def tap(self, site: Site) -> InputTap:
        """The tap at the module a sublayer starts with."""
        if site.read not in self.taps:
            self.taps[site.read] = InputTap()
            self.model.get_submodule(site.read).register_forward_pre_hook(self.taps[site.read], with_kwargs=True)
        return self.taps[site.read]


def _changed(path: str, how: str) -> DeltatuneError:
    return DeltatuneError(
        f"{path} {how} (as resize_token_embeddings does it), so that they would act otherwise; change the model before "
        "Host(model), or save the adapters first and load them onto a new Host"
    )


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
