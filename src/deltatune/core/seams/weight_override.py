"""The weight seam: an adapter's own parameters stand in for the base's while its route is on; originals are kept.

A Delta of kind `weight` either trains the stand-in (`WeightDelta`) or computes it in each forward (`ComputedWeight`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from deltatune.core.adapter import Adapter
from deltatune.core.delta import ComputedWeight, Delta, WeightDelta
from deltatune.core.errors import DeltatuneError
from deltatune.core.route import Route


class WeightSeam:
    """Swaps parameters of the base in place, at every module that shares them.

    A parameter `value` takes the original's place. A value that must be computed (from few numbers, or a float32 value
    beside a base in bfloat16) is set as a plain attribute of the module, which Python finds before the parameter. So
    the model's parameters, keys and gradients stay the same, and the values of the last forward are still there when
    gradient checkpointing recomputes a block in backward.
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
        self.computed: dict[str, Callable[[Tensor], Tensor]] = {}
        """Functions from the original to the computed value, by path."""
        self.casts: dict[str, nn.Parameter] = {}
        """Values whose dtype is not the base's, by path."""
        self.sources: list[Tensor] = []
        """The tensors from which values are computed."""
        self.shown: tuple[list[int], list[Tensor]] | None = None
        """Versions of the originals and copies of the sources of the values now set, without gradients; None if they
        must be computed again."""
        self.running: nn.Module | None = None
        """The outermost module whose forward is running."""
        self.hooked = False

    def follow(self, adapters: Iterable[Adapter]) -> None:
        """Put the originals back, then swap in or prepare the values of the given adapters."""
        self.active = tuple(adapters)
        for path, original in self.originals.items():
            self._put(path, original)
            self._hide(path)
        self.originals.clear()
        self.computed.clear()
        self.casts.clear()
        self.sources, self.shown = [], None
        for adapter in self.active:
            for _, site, delta in adapter.entries():
                if site.kind == "weight":
                    self._swap(site.path, delta)
        if (self.computed or self.casts) and not self.hooked:
            self._hook()

    def _swap(self, path: str, delta: Delta) -> None:
        if isinstance(delta, ComputedWeight):
            self.originals[path] = self.model.get_parameter(path)
            self.computed[path] = delta.weight
            self.sources += [source for source in delta.sources() if not any(source is other for other in self.sources)]
            return
        if not isinstance(delta, WeightDelta):
            raise DeltatuneError(
                f"{type(delta).__name__} acts at the weight {path}; there it must be a WeightDelta or a ComputedWeight"
            )
        original = self.originals[path] = self.model.get_parameter(path)
        if delta.value.dtype == original.dtype:
            self._put(path, delta.value)
        else:
            self.casts[path] = delta.value

    def _hook(self) -> None:
        """Hook the whole model, and its submodels that may be called alone: generation runs T5's encoder."""
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
        """Set the values for this forward; without gradients the last ones stay if nothing has changed."""
        for path, value in self.casts.items():
            self._put_before(path, value.to(self.originals[path].dtype))
        always = torch.is_grad_enabled() or torch.compiler.is_compiling()
        state = None if always else self._state()
        if state is not None and self.shown is not None and _same(state, self.shown):
            return
        for path, compute in self.computed.items():
            original = self.originals[path]
            self._put_before(path, compute(original).to(original.dtype))
        self.shown = None if state is None else (state[0], [source.clone() for source in state[1]])

    def _state(self) -> tuple[list[int], list[Tensor]]:
        """Sources are compared by value: they are small, and writing through `.data` does not change their version."""
        originals = [self.originals[path] for path in self.computed]
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


def _same(state: tuple[list[int], list[Tensor]], shown: tuple[list[int], list[Tensor]]) -> bool:
    """Whether versions and values are equal."""
    return state[0] == shown[0] and all(map(torch.equal, state[1], shown[1]))


def check_exclusive(route: Route, adapters: dict[str, Adapter]) -> None:
    """Raise if an adapter that replaces weights would share the model, be scaled, or replace one weight twice."""
    for name in route.names:
        paths = [site.path for site in adapters[name].sites.values() if site.kind == "weight"]
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
