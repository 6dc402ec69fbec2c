"""Coverage: every method on every family, attached, run, trained, merged and detached, or refused with a message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from deltatune.core.errors import DeltatuneError
from deltatune.core.host import Host
from deltatune.core.merging import merge_obstacles
from deltatune.core.method import Method
from deltatune.core.registry import registry
from deltatune.testing.fixtures import assert_close, assert_equal, attach, make_host, probe_loss
from deltatune.testing.tiny_configs import FAMILIES
from deltatune.testing.tiny_models import CONFIGS, inputs

Batch = Mapping[str, Any]


class Family:
    """A tiny model of one family, on which methods are tried in turn."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.host: Host = make_host(kind)
        self.batch: Batch = inputs(kind)
        self.base = list(self.host.model.parameters())
        self.plain = _outputs(self.host, self.batch)
        self.unused = _without_gradient(self.host, self.batch)
        """Suffixes of the names of values for parameters that no output depends on, such as a mask token's."""

    def try_(self, method: Method) -> str | None:
        """Return None if a method works here, else the first line of its refusal.

        Raises AssertionError where it attaches but fails a check; other exceptions pass through.
        """
        try:
            self._start(method)
            self._train(method)
            self._merge()
        except DeltatuneError as refusal:
            return str(refusal).splitlines()[0]
        finally:
            self.host.model.eval()
            if "a" in self.host.adapters:
                self.host.detach("a")
        again = _outputs(self.host, self.batch)
        for name, tensor in self.plain.items():
            assert_equal(again[name], tensor, f"{name} after detaching")
        return None

    def _start(self, method: Method) -> None:
        """A new adapter changes nothing, or declares that it does."""
        self.host.attach("a", method)
        if method.starts_as_base:
            new = _outputs(self.host, self.batch)
            for name, tensor in self.plain.items():
                assert_close(new[name], tensor, f"{name} with a new adapter", within=1e-5)
        self.host.detach("a")

    def _train(self, method: Method) -> None:
        """Moved off its initial values it changes the outputs, and each of its tensors gets a gradient."""
        adapter = attach(self.host, "a", method)
        trained = [(name, p) for name, p in adapter.named_parameters() if p.requires_grad]
        if not trained:
            return
        self.host.model.train()
        out = _floats(self.host.model(**self.batch))
        if all(t.shape == self.plain[name].shape and torch.equal(t, self.plain[name]) for name, t in out.items()):
            raise AssertionError("it changes no output")
        probe_loss([t for t in out.values() if t.requires_grad]).backward()  # type: ignore[no-untyped-call]
        idle = {id(p) for _, delta in adapter.named_deltas() if delta.hints.skippable for p in delta.parameters()}
        idle |= {id(p) for name, p in trained if name.replace("/", ".").endswith(self.unused)}
        missed = [name for name, p in trained if id(p) not in idle and not _reached(p)]
        if missed:
            raise AssertionError(f"without a gradient: {', '.join(missed)}")
        if any(parameter.grad is not None for parameter in self.base):
            raise AssertionError("the base gets a gradient")
        self.host.model.eval()

    def _merge(self) -> None:
        """Merged, it computes the same on the host's verification inputs and on this batch."""
        adapter = self.host.adapters["a"]
        if not adapter.merges or merge_obstacles(adapter):
            return
        unmerged = _outputs(self.host, self.batch)
        self.host.merge_("a")
        merged = _outputs(self.host, self.batch)
        self.host.unmerge_("a")
        for name, tensor in unmerged.items():
            assert_close(merged[name], tensor, f"{name} merged", within=1e-4)


def _floats(output: Any) -> dict[str, Tensor]:
    """The floating-point tensors among a model's outputs."""
    return {name: t for name, t in output.items() if isinstance(t, Tensor) and t.is_floating_point()}


@torch.no_grad()
def _outputs(host: Host, batch: Batch) -> dict[str, Tensor]:
    return _floats(host.model(**batch))


def _reached(parameter: Tensor) -> bool:
    return parameter.grad is not None and bool(parameter.grad.isfinite().all() and parameter.grad.any())


def _without_gradient(host: Host, batch: Batch) -> tuple[str, ...]:
    base = dict(host.model.named_parameters())
    host.model.requires_grad_(True)
    probe_loss(list(_floats(host.model(**batch)).values())).backward()  # type: ignore[no-untyped-call]
    unused = tuple(f".{name}.value" for name, parameter in base.items() if parameter.grad is None)
    host.model.requires_grad_(False)
    for parameter in base.values():
        parameter.grad = None
    return unused


def families() -> list[str]:
    """Every family, those of the laws first."""
    return [*CONFIGS, *FAMILIES]


def defaults() -> dict[str, Method]:
    """Every registered method with its defaults, by name; of several names for one method only the first."""
    made = {name: maker() for name, maker in registry().items() if not name.startswith("_")}
    first = {repr(method): name for name, method in reversed(made.items())}
    return {name: method for name, method in made.items() if first[repr(method)] == name}


def cover(kind: str) -> dict[str, str | None]:
    """Each method on one family: None if it works, else the first line of its refusal.

    Raises AssertionError listing every method that attaches but fails.
    """
    family, outcomes, broken = Family(kind), {}, []
    for name, method in defaults().items():
        try:
            outcomes[name] = family.try_(method)
        except Exception as error:  # all of them in one error
            broken.append(f"{name} on {kind}: {type(error).__name__}: {str(error).strip()}")
            family = Family(kind)
    if broken:
        raise AssertionError("\n".join(broken))
    return outcomes
