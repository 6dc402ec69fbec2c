"""The check of the first steps: every trainable tensor gets a gradient and moves, or training stops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from deltatune.core.errors import DeltatuneError
from deltatune.core.host import Host
from deltatune.tasks.heads import Head

STEPS = 3
"""Steps with a rate above 0 in which a tensor must have moved. In one it may not: LoRA's A has no gradient at B = 0."""


def idle(host: Host, name: str) -> set[str]:
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


def resting(host: Host, name: str) -> set[str]:
    """Trainable tensors that a step may leave out by design, as a robust AdapterDrop does with its lower layers."""
    adapter = host.adapters[name]
    left_out = {id(p) for _, _, delta in adapter.entries() if delta.rests for p in delta.parameters()}
    return {n for n, p in host.trainable(name) if id(p) in left_out}


class Watch(TrainerCallback):
    """Looks at gradients before, and at values after, each of the first optimiser steps."""

    def __init__(self, name: str, parameters: Sequence[tuple[str, nn.Parameter]]) -> None:
        self.name = name
        self.parameters = dict(parameters)
        self.waiting = set(self.parameters)
        """Tensors that have not moved yet."""
        self.rates: list[float] = []
        self.places: dict[str, tuple[int, float]] = {}
        """For each waiting tensor the place of its largest gradient, and the value there before the step."""
        self.had_gradient: set[str] = set()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A run that goes on from a later step has been checked before, and its rate may be too small to see."""
        if state.global_step >= STEPS:
            self.waiting.clear()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Every waiting tensor must have a gradient; note where it is largest."""
        missing = [name for name in self.parameters if name in self.waiting and self.parameters[name].grad is None]
        if missing:
            raise DeltatuneError(no_gradient(self.name, missing, len(self.parameters)))
        self.places = {name: self._largest(name) for name in self.waiting}
        self.had_gradient |= {name for name, (place, _) in self.places.items() if place >= 0}

    def _largest(self, name: str) -> tuple[int, float]:
        parameter = self.parameters[name]
        assert parameter.grad is not None
        sizes = parameter.grad.detach().abs().flatten()
        place = int(sizes.argmax())
        return (place, float(parameter.detach().flatten()[place])) if sizes[place] != 0 else (-1, 0.0)

    @torch.no_grad()
    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Cross off what has moved; after STEPS steps nothing may be left."""
        for name, (place, before) in self.places.items():
            if place >= 0 and float(self.parameters[name].flatten()[place]) != before:
                self.waiting.discard(name)
        rate = float(kwargs["optimizer"].param_groups[0]["lr"])
        if self.waiting and rate > 0:
            self.rates.append(rate)
            if len(self.rates) == STEPS:
                self._judge()

    def _judge(self) -> None:
        order = [name for name in self.parameters if name in self.waiting]
        self.waiting.clear()
        without = [name for name in order if name not in self.had_gradient]
        stuck = [name for name in order if name in self.had_gradient and not self._too_small(name)]
        if without or stuck:
            raise DeltatuneError(no_movement(self.name, without, stuck))

    def _too_small(self, name: str) -> bool:
        """Whether Adam's steps (about the rate each) vanish in the rounding of the value: no bug, only a tiny rate."""
        _, value = self.places[name]
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
        "model.enable_input_require_grads()); a site that is not on the way to the loss (another pooling, an unused "
        "part of the model); a forward under no_grad"
    )


def no_movement(name: str, without: Sequence[str], stuck: Sequence[str]) -> str:
    """The message for tensors that stayed what they were."""
    text = f"adapter {name!r} does not learn in {(without and 'part') or 'full'}: after {STEPS} steps"
    if without:
        text += (
            f"\n{len(without)} tensors had only zero gradients (nothing they change reaches the loss):{listed(without)}"
        )
    if stuck:
        text += (
            f"\n{len(stuck)} tensors had gradients but did not move (frozen, or not in the optimiser):{listed(stuck)}"
        )
    return text
