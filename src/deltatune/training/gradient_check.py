"""Gradient check of the first steps: every trainable tensor gets a gradient and moves, or training stops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from deltatune.core.errors import DeltatuneError
from deltatune.core.host import Host
from deltatune.tasks.heads import Head

STEPS = 3
"""Steps with a rate above 0 in which a tensor must have moved. In one it may not: LoRA's A has no gradient at B = 0."""


def unread_tensors(host: Host, name: str) -> set[str]:
    """Trainable tensors that the adapter's head does not read: the base's pooler under another pooling, its LM head.

    They belong to the method (full fine-tuning has every weight) but cannot learn anything for this task.
    """
    adapter = host.adapters[name]
    if not isinstance(adapter.head, Head):
        return set()
    modules = set()
    if "pooler" in host.sites and adapter.head.config.pooling != "pooler":
        modules.add(host.sites["pooler"].module)
    model: Any = host.model
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    modules |= {path for path, module in model.named_modules() if module is output and output is not None}
    unread = {id(p) for _, site, delta in adapter.entries() if site.module in modules for p in delta.parameters()}
    return {n for n, p in host.trainable(name) if id(p) in unread}


def skippable_tensors(host: Host, name: str) -> set[str]:
    """Trainable tensors that a step may skip by design, as a robust AdapterDrop does with its lower layers."""
    adapter = host.adapters[name]
    skippable = {id(p) for _, _, delta in adapter.entries() if delta.hints.skippable for p in delta.parameters()}
    return {n for n, p in host.trainable(name) if id(p) in skippable}


class GradientCheck:
    """Checks each of the first optimizer steps: gradients before it, changed values after it."""

    def __init__(self, name: str, parameters: Mapping[str, nn.Parameter]) -> None:
        self.name, self.parameters = name, dict(parameters)
        self.unmoved = set(self.parameters)
        """Tensors that have not moved yet."""
        self.rates: list[float] = []
        """Learning rates above 0 of the steps so far."""
        self.largest: dict[str, tuple[int, float]] = {}
        """For each unmoved tensor the index of its largest gradient, and the value there before the step."""
        self.had_gradient: set[str] = set()

    def start(self, step: int) -> None:
        """A run that resumes from a later step has been checked before, and its rate may be too small to see."""
        if step >= STEPS:
            self.unmoved.clear()

    def before_step(self) -> None:
        """Every unmoved tensor must have a gradient; remember where it is largest."""
        if not self.unmoved:
            return
        missing = [n for n, parameter in self.parameters.items() if n in self.unmoved and parameter.grad is None]
        if missing:
            raise DeltatuneError(no_gradient(self.name, missing, len(self.parameters)))
        self.largest = {name: self._largest_gradient(name) for name in self.unmoved}
        self.had_gradient |= {name for name, (index, _) in self.largest.items() if index >= 0}

    def _largest_gradient(self, name: str) -> tuple[int, float]:
        """Index and value of the entry with the largest gradient; (-1, 0) where all gradients are zero."""
        parameter = self.parameters[name]
        assert parameter.grad is not None
        sizes = parameter.grad.detach().abs().flatten()
        index = int(sizes.argmax())
        return (index, float(parameter.detach().flatten()[index])) if sizes[index] != 0 else (-1, 0.0)

    @torch.no_grad()
    def after_step(self, learning_rate: float) -> None:
        """Cross off what has moved; after STEPS steps with a rate above 0 nothing may be left."""
        if not self.unmoved:
            return
        for name, (index, before) in self.largest.items():
            if index >= 0 and float(self.parameters[name].flatten()[index]) != before:
                self.unmoved.discard(name)
        if self.unmoved and learning_rate > 0:
            self.rates.append(learning_rate)
            if len(self.rates) == STEPS:
                self._raise_for_unmoved()

    def _raise_for_unmoved(self) -> None:
        unmoved = [name for name in self.parameters if name in self.unmoved]
        self.unmoved.clear()
        zero = [name for name in unmoved if name not in self.had_gradient]
        stuck = [name for name in unmoved if name in self.had_gradient and not self._too_small_to_move(name)]
        if zero or stuck:
            raise DeltatuneError(no_movement(self.name, zero, stuck, len(self.parameters)))

    def _too_small_to_move(self, name: str) -> bool:
        """Whether Adam's steps (about the rate each) vanish in the rounding of the value: no bug, only a tiny rate."""
        _, value = self.largest[name]
        return sum(self.rates) < 4 * torch.finfo(self.parameters[name].dtype).eps * abs(value)


def listed(names: Sequence[str], most: int = 6) -> str:
    """Names one a line, the first few."""
    more = [f"... and {len(names) - most} more"] if len(names) > most else []
    return "".join(f"\n  {name}" for name in [*names[:most], *more])


def no_gradient(name: str, missing: Sequence[str], total: int) -> str:
    """The message for tensors that backward did not reach."""
    return (
        f"adapter {name!r}: no gradient in the first step for {len(missing)} of {total} tensors:{listed(missing)}\n"
        "likely causes: gradient checkpointing that starts from frozen inputs (pass use_reentrant=False, or call "
        "model.enable_input_require_grads()); a site that is not connected to the loss (another pooling, an unused "
        "part of the model); a forward under no_grad"
    )


def no_movement(name: str, zero: Sequence[str], stuck: Sequence[str], total: int) -> str:
    """The message for tensors that did not change."""
    unmoved = len(zero) + len(stuck)
    text = f"adapter {name!r}: {unmoved} of {total} trainable tensors did not change after {STEPS} steps"
    if zero:
        text += f"\n{len(zero)} tensors had only zero gradients (not connected to the loss):{listed(zero)}"
    if stuck:
        text += (
            f"\n{len(stuck)} tensors had gradients but did not move (frozen, or not in the optimizer):{listed(stuck)}"
        )
    return text
