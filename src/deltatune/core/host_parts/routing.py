"""Routing: which adapters act on one base at present, and the seams that follow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from torch import nn

from deltatune.core.adapter import Adapter
from deltatune.core.errors import DeltatuneError
from deltatune.core.merging import MergedAdapters
from deltatune.core.route import Route, RouteSpec, read_route
from deltatune.core.seams.model_seams import ModelSeams
from deltatune.core.seams.weight_override import check_exclusive


class _Block:
    """An open `using` block, and the route that it gives back."""

    def __init__(self, before: Route) -> None:
        self.before = before


class Routing:
    """The current route of one base. `Host.use` and `Host.using` change it; merging limits what is possible."""

    def __init__(
        self,
        model: nn.Module,
        adapters: dict[str, Adapter],
        seams: ModelSeams,
        merging: MergedAdapters,
        follow_hosted: Callable[[bool], None],
    ) -> None:
        """`follow_hosted` is told whether the model has adapters, whenever that may have changed."""
        self.follow_hosted = follow_hosted
        self.model, self.adapters, self.seams, self.merging = model, adapters, seams, merging
        self.route = Route()
        self.blocks: list[_Block] = []
        """Open `using` blocks in the order in which they began."""
        self.places: Mapping[str, tuple[str, int]] = {}
        """Group and slot of each adapter of the bank."""

    def checked(self, route: RouteSpec, stacked: bool) -> Route:
        """Read a route. Raises DeltatuneError for unknown adapters, and for what cannot act together or at present."""
        wanted = read_route(route, self.adapters, stacked)
        if self.seams.hooks.sites.facts.denoiser and not wanted.whole_batch:
            wanted = replace(wanted, whole_batch=True, _cache={})
        if not self._possible(wanted):
            self.refuse_if_merged("use")
        self._refuse_stacked(wanted)
        wanted = self._same_where_shared(wanted)
        check_exclusive(wanted, self.adapters)
        return self._placed(wanted)

    def take(self, route: Route) -> None:
        """Make a checked route the current one."""
        self.route = route
        self.arrange()

    def forget(self, name: str) -> None:
        """Take an adapter out of the current route; the caller takes it out of the adapters, and arranges the rest."""
        self.route = self.route.without([name])

    @contextmanager
    def switched(self, route: Route, training: bool | None) -> Iterator[None]:
        """A checked route and a mode for a `with` block; afterwards route and modes are as before, where possible."""
        block = _Block(self.route)
        modes = [] if training is None else [(module, module.training) for module in self.model.modules()]
        self.take(route)
        self.blocks.append(block)
        if training is not None:
            self.model.train(training)
        try:
            yield
        finally:
            if block is self.blocks[-1]:
                earlier = block.before.without(block.before.names - set(self.adapters))
                self.take(self._placed(earlier) if self._possible(earlier) else Route())
            else:  # of another thread, or of a generator: the block that began after this one takes its route back
                self.blocks[self.blocks.index(block) + 1].before = block.before
            self.blocks.remove(block)
            for module, mode in modes:
                module.training = mode

    def arrange(self) -> None:
        """Make the seams follow the route."""
        self.follow_hosted(bool(self.adapters))
        merged = self.merging.differences
        active = {name: self.adapters[name] for name in sorted(self.route.names) if name not in merged}
        self.seams.follow(self.route, active)

    def refuse_if_merged(self, verb: str) -> None:
        """Raise DeltatuneError while an adapter is merged into the weights."""
        if self.merging.differences:
            raise DeltatuneError(
                f"cannot {verb} while {', '.join(self.merging.differences)} is merged into the weights; call unmerge_ "
                "first"
            )

    def _refuse_stacked(self, route: Route) -> None:
        """Raise DeltatuneError where adapters of the bank are stacked: those of a group act in one stage, as a sum."""
        rows = [row for row in (route.uniform, *(route.rows or ())) if route.order and len(row) > 1]
        banked = sorted({name for row in rows for name in row if name in self.places})
        if banked:
            raise DeltatuneError(
                f"{', '.join(banked)} cannot be stacked in the bank, whose adapters add up; attach what is stacked: "
                "host.load(folder, name=...)"
            )

    def _same_where_shared(self, route: Route) -> Route:
        """The route; where an adapter acts at modules that do not keep rows apart, equal rows become the whole batch.

        Raises DeltatuneError for rows that differ.
        """
        shared = [
            (name, site) for name in sorted(route.names) for site in self.adapters[name].acting_sites if site.shared
        ]
        if route.rows is None or not shared:
            return route
        if all(row == route.rows[0] for row in route.rows):
            return replace(route, uniform=route.rows[0], rows=None, _cache={})
        name, site = shared[0]
        raise DeltatuneError(
            f"adapter {name!r} acts at {site.name}, where this model does not keep the rows of a batch apart, so that "
            f"all rows need the same adapters: give each adapter its own batch, use({name!r}), or choose sites such as "
            "'*.attn.o' and '*.ffn.*'"
        )

    def _placed(self, route: Route) -> Route:
        """A route with the slots that its adapters have in the bank now."""
        places = {name: self.places[name] for name in route.names if name in self.places}
        return route if places == route.places else replace(route, places=places, _cache={})

    def _possible(self, route: Route) -> bool:
        """With adapters in the weights, no other one can act, and none can act on some rows only."""
        merged = self.merging.differences
        return not merged or (route.rows is None and not route.names - set(merged))
