"""Ports: the permanent hooks of the modules that adapters change. Attaching and routing change data, not hooks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from deltatune.core.delta import Delta
from deltatune.core.errors import DeltatuneError
from deltatune.core.route import Route, Share, mix
from deltatune.core.sites.fused_projections import put, take
from deltatune.core.sites.site import Site, Slice


class Tap:
    """Remembers the last input of a module that a sublayer starts with."""

    def __init__(self) -> None:
        self.wanted = False
        self.value: Tensor | None = None

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self.wanted:
            self.value = args[0]


class Now:
    """What is known of the batch that runs at present."""

    mask: Tensor | None = None
    """Attention mask (B, S) as the model saw it, virtual tokens and the past included; None if every token was real."""
    decoder_mask: Tensor | None = None
    """The same of the decoder behind an encoder."""

    def see_encoder(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pre-hook of an encoder before a decoder: generate() calls it alone."""
        mask = kwargs.get("attention_mask")
        self.mask = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None


class Entry(NamedTuple):
    """One Delta at a port, with what it reads."""

    name: str
    site: Site
    delta: Delta
    tap: Tap | None
    norm: nn.Module | None
    acts: Callable[[], bool]
    """Whether it takes part: not if its layer is dropped."""


class Acting(NamedTuple):
    """A Delta on some rows of a call of attention, with the attention's input (B, T, D) if it is tapped."""

    delta: Delta
    share: Share
    x: Tensor | None


class Port:
    """What happens at one module. `entries` are all Deltas attached there, `active` those of the current route."""

    def __init__(self, now: Now) -> None:
        self.now = now
        self.entries: dict[str, list[Entry]] = {}
        """By adapter, so that choosing among many costs no more than among few."""
        self.active: tuple[tuple[Entry, ...], ...] = ()
        self.route = Route()
        self.alone: tuple[Delta, float] | None = None
        """The common case, prepared: one Delta on a whole linear map, with the same weight in all rows."""

    def arrange(self, route: Route, names: set[str]) -> None:
        """Choose the active entries: those on the module itself first, then those on the sublayer it ends."""
        here = names & self.entries.keys()
        each = [[entry for entry in self.entries[name] if entry.acts()] for name in sorted(here, key=_place(route))]
        mine = [entry for entries in each for entry in entries]
        together = each if route.order else [mine]
        inner = [tuple(entry for entry in entries if entry.site.kind != "sublayer") for entries in together]
        outer = [tuple(entry for entry in entries if entry.site.kind == "sublayer") for entries in together]
        self.active = tuple(stage for stage in (*inner, *outer) if stage)
        self.route = route
        plain = len(mine) == 1 and route.rows is None and _is_plain(mine[0])
        self.alone = (mine[0].delta, route.uniform[mine[0].name]) if plain else None

    def acting(self, batch: int, device: torch.device) -> list[Acting]:
        """Active Deltas of a call of attention, ready to be called with their rows."""
        found = []
        for entry in (entry for stage in self.active for entry in stage):
            share = self.route.share(entry.name, batch, device)
            if share is not None:
                self.tell_mask(entry, share)
                found.append(Acting(entry.delta, share, self.read(entry, None, ()) if entry.delta.tapped else None))
        return found

    def tell_mask(self, entry: Entry, share: Share) -> None:
        """Show a Delta that asks for it which tokens of its rows are real."""
        if entry.delta.masked:
            mask = self.now.decoder_mask if entry.site.name.startswith("decoder.") else self.now.mask
            entry.delta.mask = mask if mask is None or share.rows is None else mask.index_select(0, share.rows)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if not self.active:
            return None
        if self.alone is not None and isinstance(output, Tensor):
            delta, weight = self.alone
            return delta.add(output, args[0], weight)
        h = output if isinstance(output, Tensor) else output[0]
        for stage in self.active:
            h = self.change(h, stage, args)
        return h if isinstance(output, Tensor) else (h, *output[1:])

    def change(self, h: Tensor, stage: Sequence[Entry], args: tuple[Any, ...]) -> Tensor:
        """Apply one stage; all of its Deltas see the same `h`."""
        groups: dict[Slice | None, list[tuple[Delta, Tensor, Share]]] = {}
        for entry in stage:
            share = self.route.share(entry.name, h.shape[0], h.device)
            if share is not None:
                self.tell_mask(entry, share)
                groups.setdefault(entry.site.slice, []).append((entry.delta, self.read(entry, h, args), share))
        out = mix(h, groups.pop(None, []))
        for cut, changes in groups.items():
            part = take(h, cut)
            changed = mix(part, changes)
            out = put(out, cut, changed if out is h else take(out, cut) + (changed - part))
        return out

    def read(self, entry: Entry, h: Any, args: tuple[Any, ...]) -> Tensor:
        """The `x` of one entry."""
        if entry.delta.reads == "output" or (entry.delta.reads == "normed" and entry.norm is None):
            return h  # type: ignore[no-any-return]
        if entry.tap is None:
            return self.input(args)
        x = entry.tap.value
        if x is None:
            raise DeltatuneError(
                f"site {entry.site.name!r} was reached before its input at {entry.site.read!r}; "
                "this model calls its parts in an order that cannot be followed"
            )
        return entry.norm(h + x) if entry.delta.reads == "normed" and entry.norm is not None else x

    def input(self, args: tuple[Any, ...]) -> Tensor:
        """The module's own input."""
        x: Tensor = args[0]
        return x


def _place(route: Route) -> Callable[[str], tuple[int, str]]:
    """Order of adapters at a module: as stacked, else by name."""
    return lambda name: (route.order.index(name) if name in route.order else 0, name)


def _is_plain(entry: Entry) -> bool:
    plain = entry.site.kind == "linear" and entry.site.slice is None
    return plain and entry.delta.reads == "input" and not entry.delta.masked


class InputPort(Port):
    """The port of a map's input: a pre-hook."""

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Pre-hook: change what the map reads."""
        if not self.active:
            return None
        h = args[0]
        for stage in self.active:
            h = self.change(h, stage, args)
        return (h, *args[1:])


class EmbedPort(Port):
    """The port of a token embedding: keeps the ids as they came and shows the module only ids it knows.

    A prompt has one at every stack: T5's and BART's classifiers hand the encoder's ids to the decoder.
    """

    def __init__(self, now: Now, vocabulary: int) -> None:
        super().__init__(now)
        self.vocabulary = vocabulary
        self.ids: Tensor | None = None

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Pre-hook: clamp virtual ids."""
        if not self.active:
            return None
        self.ids = args[0]
        return (args[0].clamp(max=self.vocabulary - 1), *args[1:])

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Hook: virtual ids have no vector of their own, so a weighted prompt adds to zero."""
        if not self.active:
            return None
        virtual = self.input(args) >= self.vocabulary
        return super().__call__(module, args, output.masked_fill(virtual.unsqueeze(-1), 0))

    def input(self, args: tuple[Any, ...]) -> Tensor:
        """The ids before clamping (B, T)."""
        assert self.ids is not None
        return self.ids
