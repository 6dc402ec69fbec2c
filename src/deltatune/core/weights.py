"""The weight seam: an adapter's own parameters stand in for the base's while its route is on; originals are kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from deltatune.core.adapter import Adapter
from deltatune.core.delta import Delta
from deltatune.core.errors import DeltatuneError
from deltatune.core.mixing import Route


class WeightSeam:
    """Swaps parameters of the base in place, at every module that shares them."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.places: dict[int, list[tuple[nn.Module, str]]] = {}
        for module in model.modules():
            for attribute, parameter in module._parameters.items():
                if parameter is not None:
                    self.places.setdefault(id(parameter), []).append((module, attribute))
        self.originals: dict[str, nn.Parameter] = {}
        """Base parameters that are swapped out at present, by path."""
        self.active: tuple[Adapter, ...] = ()
        self.masters: dict[str, nn.Parameter] = {}
        """Swapped-in values whose dtype is not the base's (float32 beside bfloat16), by path."""
        model.register_forward_pre_hook(self._cast)

    @contextmanager
    def put_back(self) -> Iterator[None]:
        """The base with its own weights, while an adapter takes its initial values from them."""
        active = self.active
        self.arrange(())
        try:
            yield
        finally:
            self.arrange(active)

    def arrange(self, adapters: Iterable[Adapter]) -> None:
        """Put the originals back, then swap in what the given adapters own."""
        self.active = tuple(adapters)
        for path, original in self.originals.items():
            self._put(path, original)
        self.originals.clear()
        self.masters.clear()
        for adapter in self.active:
            for _, site, delta in adapter.entries():
                if site.kind == "weight":
                    self._swap(site.name, delta)

    def _swap(self, path: str, delta: Delta) -> None:
        self.originals[path] = self.model.get_parameter(path)
        value = delta.get_parameter("value")
        self._put(path, value)
        if value.dtype != self.originals[path].dtype:
            self.masters[path] = value

    def _cast(self, model: nn.Module, args: object) -> None:
        """Pre-hook of the whole model: show the base its own dtype; gradients reach the master values."""
        for path, value in self.masters.items():
            self._put(path, value.to(self.originals[path].dtype))

    def _put(self, path: str, parameter: Tensor) -> None:
        original = self.originals[path]
        for module, attribute in self.places[id(original)]:
            module._parameters[attribute] = parameter  # type: ignore[assignment]  # a cast is no Parameter

    def original(self, path: str) -> nn.Parameter:
        """The base's own parameter at a path, swapped out or not."""
        return self.originals[path] if path in self.originals else self.model.get_parameter(path)


def check_exclusive(route: Route, adapters: dict[str, Adapter]) -> None:
    """Raise if an adapter that changes weights would have to share the model with others or be scaled."""
    for name in route.names:
        alone = route.rows is None and dict(route.uniform) == {name: 1.0}
        if not alone and any(site.kind == "weight" for site in adapters[name].sites.values()):
            raise DeltatuneError(
                f"adapter {name!r} ({adapters[name].method!r}) replaces weights of the base, so it can only run alone "
                f"on whole batches with weight 1: host.use({name!r})"
            )
