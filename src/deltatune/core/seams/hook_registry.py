"""The hooks of a model: ports where adapters change it, taps where they read it. They stay; what they do is data."""

from __future__ import annotations

from functools import partial

from torch import nn

from deltatune.core.adapter import Adapter
from deltatune.core.route import Route
from deltatune.core.seams.attention import PORT
from deltatune.core.seams.hook_points import EmbedPort, Entry, InputPort, Now, Port, Tap
from deltatune.core.sites.site import Site, Sites


class Wiring:
    """Every port and tap of one model, by the module it hangs on."""

    def __init__(self, model: nn.Module, sites: Sites, now: Now) -> None:
        self.model, self.sites, self.now = model, sites, now
        self.ports: dict[tuple[str, str], Port] = {}
        self.taps: dict[str, Tap] = {}

    def plug(self, name: str, adapter: Adapter) -> None:
        """Enter an adapter's Deltas at their ports. A soft prompt has one at every embedding."""
        for _, site, delta in adapter.entries():
            if site.kind == "weight":
                continue
            reads_in = site.kind == "sublayer" and any(part.reads != "output" for part in delta.parts)
            tap = self.tap(site) if reads_in or (site.kind == "kv" and delta.tapped) else None
            norm = self.model.get_submodule(site.norm) if site.norm else None
            for place in [s for s in self.sites.values() if s.kind == "embed"] if delta.tokens else [site]:
                entry = Entry(name, place, delta, tap, norm, partial(adapter.acts_at, site))
                self.port(place).entries.setdefault(name, []).append(entry)

    def unplug(self, name: str) -> None:
        """Take an adapter's Deltas out."""
        for port in self.ports.values():
            port.entries.pop(name, None)

    def arrange(self, route: Route, active: set[str]) -> None:
        """Make ports and taps follow a route, of which some adapters act live."""
        for port in self.ports.values():
            port.arrange(route, active)
        wanted = {id(e.tap) for port in self.ports.values() for stage in port.active for e in stage}
        for tap in self.taps.values():
            tap.wanted, tap.value = id(tap) in wanted, None

    @property
    def attention(self) -> tuple[bool, bool]:
        """Whether an active Delta works inside attention, and whether one makes the keys longer."""
        ports = [port for (_, kind), port in self.ports.items() if kind == "kv"]
        deltas = [entry.delta for port in ports for stage in port.active for entry in stage]
        return bool(deltas), any(delta.lengthens for delta in deltas)

    def port(self, site: Site) -> Port:
        """The port of a site's module, hooked in at first use."""
        key = (site.module, site.kind if site.kind in ("kv", "input") else "output")
        if key not in self.ports:
            self.ports[key] = _hooked(self.model.get_submodule(site.module), site, self.now)
        return self.ports[key]

    def tap(self, site: Site) -> Tap:
        """The tap at the module a sublayer starts with."""
        if site.read not in self.taps:
            self.taps[site.read] = Tap()
            self.model.get_submodule(site.read).register_forward_pre_hook(self.taps[site.read])
        return self.taps[site.read]


def _hooked(module: nn.Module, site: Site, now: Now) -> Port:
    if site.kind == "kv":
        setattr(module, PORT, port := Port(now))
        return port
    if site.kind == "input":
        module.register_forward_pre_hook((inlet := InputPort(now)).before)
        return inlet
    if site.kind == "embed":
        module.register_forward_pre_hook((table := EmbedPort(now, site.width_in)).before)
        module.register_forward_hook(table)
        return table
    module.register_forward_hook(port := Port(now))
    return port
