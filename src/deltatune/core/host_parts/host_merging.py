"""Merging of a host's adapters: into the base's weights and out again, or for good, which leaves a plain model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn

from deltatune.core.adapter import Adapter
from deltatune.core.adapter_formats import own_format
from deltatune.core.errors import CannotMerge, DeltatuneError, nearest, raise_all
from deltatune.core.host_parts.bank import BankedAdapter
from deltatune.core.host_parts.routing import Routing
from deltatune.core.merging import (
    MergedAdapters,
    check_merges,
    computing_dtype,
    difference,
    rounding_tolerance,
    verification_output,
)
from deltatune.core.route import read_route
from deltatune.core.seams.weight_override import check_exclusive

if TYPE_CHECKING:
    from deltatune.core.host import Host


class HostMerging:
    """Merging of the adapters of one host, for the time being or for good."""

    def __init__(self, host: Host, routing: Routing, merging: MergedAdapters) -> None:
        self.host, self.routing, self.merging = host, routing, merging

    def merge_(self, name: str, adapter: Adapter, weight: float) -> float:
        """Write an adapter into the weights, and return the largest difference that it makes on random inputs."""
        host = self.host
        if name in host.merged:
            raise DeltatuneError(f"adapter {name!r} is merged already")
        check_merges(name, adapter, host.model)
        route = read_route({name: weight}, host.adapters)
        check_exclusive(route, host.adapters)
        with self.routing.switched(route, training=False):
            unmerged = verification_output(host.model, host.sites.facts)
            self.merging.differences[name] = 0.0
            try:
                self.routing.arrange()
                self.merging.write_(name, adapter, weight)
                return self.merging.verify_(name, unmerged, host.sites.facts)
            except BaseException:
                self.unmerge_(name)
                raise

    def unmerge_(self, name: str) -> None:
        """Take a merged adapter out of the weights."""
        if name not in self.host.merged:
            raise DeltatuneError(f"adapter {name!r} is not merged{nearest(name, self.host.merged)}")
        self.merging.remove_(name, self.host.adapters)
        self.routing.arrange()

    def merge_and_unload(self) -> nn.Module:
        """Merge the active adapters, take all adapters out, and return the plain model."""
        host = self.host
        before, route = tuple(host.merged), host.route
        weights = dict(route.uniform)
        raise_all(_obstacles(host, weights), "the adapters cannot be merged for good:", CannotMerge)
        with host.using(route, training=False):
            together = verification_output(host.model, host.sites.facts)
        try:
            for name, weight in weights.items():
                if name not in host.merged:
                    host.merge_(name, weight)
            self._check_together(weights, together)
            headed = [name for name in weights if host.adapters[name].head is not None]
            model = own_format().plain_model(host, headed[0]) if headed else host.model
        except BaseException:
            for name in [name for name in host.merged if name not in before]:
                host.unmerge_(name)
            host.use(route)
            raise
        host.use(None)
        self.merging.keep_()
        for name in tuple(host.adapters):
            host.detach(name)
        return model

    def _check_together(self, weights: Mapping[str, float], together: Tensor | None) -> None:
        """Raise CannotMerge if adapters merged one after another compute something else than they did together."""
        host = self.host
        with host.using(None, training=False):
            worst = difference(together, verification_output(host.model, host.sites.facts))
        if not worst <= rounding_tolerance(together, computing_dtype(host.model)):
            raise CannotMerge(
                f"{' and '.join(weights)}, merged one after another, differ by {worst:.2g} from what they compute "
                "together: changes that scale an output add up while they act, and multiply in the weights. Merge one "
                "of them: host.use(name)"
            )


def _obstacles(host: Host, weights: dict[str, float]) -> list[str]:
    """Why the adapters that act cannot become the base."""
    if host.route.rows is not None:
        return ["they act on some rows only; choose those to merge: host.use(name)"]
    if not weights:
        names = ", ".join(host.adapters) or "none"
        return [f"no adapter is active (attached: {names}); choose what to merge: host.use(name)"]
    problems = [
        f"{name} is merged and does not act; host.unmerge_({name!r}) first"
        for name in host.merged
        if name not in weights
    ]
    banked = [name for name in weights if isinstance(host.adapters[name], BankedAdapter)]
    problems += [f"{name} is in the bank; attach it: host.load(folder, name=...)" for name in banked]
    headed = [name for name in weights if host.adapters[name].head is not None]
    if len(headed) > 1:
        problems.append(f"{' and '.join(headed)} each have a head, and a model has one; merge them one at a time")
    stored = {site.quantized for site in host.sites.weights.values() if site.quantized}
    if stored:
        problems.append(
            f"weights of the base are stored in {', '.join(sorted(map(str, stored)))}; make a plain model first: "
            "dequantize_(model) before Host(model), and load the adapter with other_base=True; or write the merged "
            "model: `deltatune merge`"
        )
    return problems
