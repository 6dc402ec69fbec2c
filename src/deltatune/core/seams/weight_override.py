"""The weight seam: an adapter's own parameters stand in for the base's while its route is on; originals are kept.

A Delta of kind `weight` either has a parameter `value` of its own, or makes its value from what it trains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from deltatune.core.adapter import Adapter
from deltatune.core.delta import Delta
from deltatune.core.errors import DeltatuneError
from deltatune.core.route import Route


@runtime_checkable
class Made(Protocol):
    """A Delta of kind `weight` without a value of its own: each forward of the model asks for one."""

    def weight(self, original: Tensor) -> Tensor:
        """The value that stands in for the base's parameter, of its shape; gradients reach what is trained."""
        ...

    def sources(self) -> Sequence[Tensor]:
        """What the value is made from, the base's parameter aside."""
        ...


class WeightSeam:
    """Swaps parameters of the base in place, at every module that shares them.

    A parameter `value` takes the original's place. What must be made anew (a value computed from few numbers, a
    float32 value beside a base in bfloat16) is shown instead: as an attribute of the module's own, which Python finds
    before the parameter. So the model's parameters, keys and gradients stay what they are, and what the last forward
    used is still there when gradient checkpointing recomputes a block in backward.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.places: dict[int, list[tuple[nn.Module, str]]] = {}
        for module in model.modules():
            for attribute, parameter in module._parameters.items():
                if parameter is not None:
                    self.places.setdefault(id(parameter), []).append((module, attribute))
        self.originals: dict[str, nn.Parameter] = {}
        """Base parameters that are swapped out or hidden at present, by path."""
        self.active: tuple[Adapter, ...] = ()
        self.made: dict[str, Callable[[Tensor], Tensor]] = {}
        """How to make the values that are computed, from the original, by path."""
        self.casts: dict[str, nn.Parameter] = {}
        """Values whose dtype is not the base's, by path."""
        self.sources: list[Tensor] = []
        """What all computed values are made from."""
        self.kept: tuple[list[int], list[Tensor]] | None = None
        """Versions of the originals and copies of the sources of which the values now shown were made, without
        gradients; None if they must be made again."""
        self.running: nn.Module | None = None
        """The outermost module whose forward is going on."""
        self.hooked = False

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
        """Put the originals back, then swap in or get ready what the given adapters have."""
        self.active = tuple(adapters)
        for path, original in self.originals.items():
            self._put(path, original)
            self._hide(path)
        self.originals.clear()
        self.made.clear()
        self.casts.clear()
        self.sources, self.kept = [], None
        for adapter in self.active:
            for _, site, delta in adapter.entries():
                if site.kind == "weight":
                    self._swap(site.name, delta)
        if (self.made or self.casts) and not self.hooked:
            self._hook()

    def _swap(self, path: str, delta: Delta) -> None:
        original = self.originals[path] = self.model.get_parameter(path)
        if isinstance(delta, Made):
            self.made[path] = delta.weight
            self.sources += [source for source in delta.sources() if not any(source is other for other in self.sources)]
            return
        value = delta.get_parameter("value")
        if value.dtype == original.dtype:
            self._put(path, value)
        else:
            self.casts[path] = value

    def _hook(self) -> None:
        """Listen to the whole model, and to its parts that are called by themselves: generation runs T5's encoder."""
        for module in self.model.modules():
            if module is self.model or isinstance(module, PreTrainedModel):
                module.register_forward_pre_hook(self._before)
                module.register_forward_hook(self._after, always_call=True)
        self.hooked = True

    def _before(self, module: nn.Module, args: object) -> None:
        if self.running is None and self.originals:
            self.running = module
            self._show()

    def _after(self, module: nn.Module, args: object, output: object) -> None:
        if self.running is module:
            self.running = None

    def _show(self) -> None:
        """Make what this forward reads; without gradients the last one's values do if nothing has changed."""
        for path, value in self.casts.items():
            self._put_before(path, value.to(self.originals[path].dtype))
        afresh = torch.is_grad_enabled() or torch.compiler.is_compiling()
        now = None if afresh else self._state()
        if now is not None and self.kept is not None and _same(now, self.kept):
            return
        for path, make in self.made.items():
            original = self.originals[path]
            self._put_before(path, make(original).to(original.dtype))
        self.kept = None if now is None else (now[0], [source.clone() for source in now[1]])

    def _state(self) -> tuple[list[int], list[Tensor]]:
        """Sources are compared by value, they are small, and writing through `.data` leaves their version as it was."""
        originals = [self.originals[path] for path in self.made]
        versions = [0 if original.is_inference() else original._version for original in originals]
        return versions, [source.detach() for source in self.sources]

    def _put_before(self, path: str, value: Tensor) -> None:
        for module, attribute in self.places[id(self.originals[path])]:
            vars(module)[attribute] = value

    def _hide(self, path: str) -> None:
        for module, attribute in self.places[id(self.originals[path])]:
            vars(module).pop(attribute, None)

    def _put(self, path: str, parameter: nn.Parameter) -> None:
        for module, attribute in self.places[id(self.originals[path])]:
            module._parameters[attribute] = parameter

    def original(self, path: str) -> nn.Parameter:
        """The base's own parameter at a path, swapped out or not."""
        return self.originals[path] if path in self.originals else self.model.get_parameter(path)


def _same(now: tuple[list[int], list[Tensor]], kept: tuple[list[int], list[Tensor]]) -> bool:
    """Whether versions and values are equal."""
    return now[0] == kept[0] and all(map(torch.equal, now[1], kept[1]))


def check_exclusive(route: Route, adapters: dict[str, Adapter]) -> None:
    """Raise if an adapter that changes weights would have to share the model with others, be scaled, or meet itself."""
    for name in route.names:
        paths = [site.name for site in adapters[name].sites.values() if site.kind == "weight"]
        alone = route.rows is None and dict(route.uniform) == {name: 1.0}
        if not alone and paths:
            raise DeltatuneError(
                f"adapter {name!r} ({adapters[name].method!r}) replaces weights of the base, so it can only run alone "
                f"on whole batches with weight 1: host.use({name!r})"
            )
        if len(set(paths)) < len(paths):
            twice = next(path for path in paths if paths.count(path) > 1)
            raise DeltatuneError(
                f"adapter {name!r} ({adapters[name].method!r}) replaces {twice} twice; take one of the two methods"
            )
