"""Gradient check of the first steps: every trainable tensor gets a gradient and moves, or training stops."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import nn

from deltatune.core.errors import DeltatuneError
from deltatune.core.host import Host
from deltatune.core.sites.non_block_sites import output_embeddings
from deltatune.tasks.heads import Head, Heads, HeadsConfig
from deltatune.tasks.task import LanguageModelTask, Task

STEPS = 3
"""Steps in which every tensor must have moved. In the first it may not: LoRA's A has no gradient at B = 0."""
ADAM_EPS = 1e-8
"""Adam's epsilon: gradients far below it hardly move a value."""


def unread_tensors(host: Host, name: str, task: Task | None = None) -> set[str]:
    """Trainable tensors that the adapter's head does not read: the base's pooler under another pooling, its LM head.

    They belong to the method (full fine-tuning has every weight) but cannot learn anything for this task. An objective
    with a head of its own, for pairs of sentences, reads the language-model head too.
    """
    adapter = host.adapters[name]
    if not isinstance(adapter.head, (Head, Heads)):
        return set()
    modules = set()
    own = adapter.head.config
    poolings = {config.pooling for config in (own.parts.values() if isinstance(own, HeadsConfig) else (own,))}
    if "pooler" in host.sites and "pooler" not in poolings:
        modules.add(host.sites["pooler"].module)
    if isinstance(own, HeadsConfig) or isinstance(task, LanguageModelTask):  # which read the language-model head
        return _names_at(host, name, modules)
    return _names_at(host, name, modules | output_modules(host))


def output_modules(host: Host) -> set[str]:
    """The paths of the language-model head, if the model has one: BERT's has a dense layer and a norm too."""
    output = output_embeddings(host.model)
    if output is None:
        return set()
    body = getattr(host.model, "base_model", host.model)
    inside = {id(module) for module in body.modules()}
    return {p for p, module in host.model.named_modules() if p and (module is output or id(module) not in inside)}


def _names_at(host: Host, name: str, modules: Collection[str]) -> set[str]:
    """The trainable tensors of an adapter at the sites of some modules."""
    entries = host.adapters[name].entries()
    there = {id(p) for _, site, delta in entries if site.module in modules for p in delta.parameters()}
    return {n for n, p in host.trainable(name) if id(p) in there}


def skippable_tensors(host: Host, name: str) -> set[str]:
    """Trainable tensors that a step may skip by design, as a robust AdapterDrop does with its lower layers.

    A step may have no rows of some part of a mixture; then that part's head, or the language-model head, is not read.
    """
    adapter = host.adapters[name]
    skippable = {id(p) for _, _, delta in adapter.entries() if delta.hints.skippable for p in delta.parameters()}
    names = {n for n, p in host.trainable(name) if id(p) in skippable}
    if isinstance(adapter.head, Heads):
        heads = {n for n, _ in host.trainable(name) if n.startswith("head.")}
        return names | heads | _names_at(host, name, output_modules(host))
    return names


class GradientCheck:
    """Checks each of the first optimizer steps: gradients before it, changed values after it."""

    def __init__(self, name: str, parameters: Mapping[str, nn.Parameter], skippable: Collection[str] = ()) -> None:
        """`skippable`: names of parameters that need not move; if nothing else does, one of them must."""
        self.name, self.parameters = name, dict(parameters)
        self.required = [name for name in self.parameters if name not in skippable]
        self.unmoved = set(self.required)
        """Required tensors that have not moved yet; empty when the check is over."""
        self.has_moved = False
        """Whether any tensor has moved."""
        self.steps = 0
        """Steps so far with a learning rate above 0."""
        self.largest: dict[str, tuple[int, float, float]] = {}
        """For each watched tensor the index of its largest gradient, and the value and the gradient there."""
        self.expected: dict[str, float] = {}
        """For each watched tensor the most by which Adam's steps so far can have moved it."""
        self.had_gradient: set[str] = set()

    def start(self, step: int, has_moved: bool = True) -> None:
        """A run that resumes from a later step has been checked before, and its rate may be too small to see."""
        self.has_moved = step > 0 and has_moved
        if step >= STEPS:
            self.unmoved.clear()

    def before_step(self) -> None:
        """Every unmoved tensor must have a gradient; remember where it is largest."""
        if self.has_moved and not self.unmoved:  # the check is over
            self.largest = {}
            return
        missing = [name for name in self.required if name in self.unmoved and self.parameters[name].grad is None]
        if missing:
            raise DeltatuneError(no_gradient(self.name, missing, len(self.required)))
        watched = [name for name in self.parameters if name in self.unmoved or not self.has_moved]
        self.largest = {name: self._largest_gradient(name) for name in watched}
        self.had_gradient |= {name for name, (index, _, _) in self.largest.items() if index >= 0}

    def _largest_gradient(self, name: str) -> tuple[int, float, float]:
        """Index, value and gradient of the entry with the largest gradient; index -1 where all gradients are zero."""
        parameter = self.parameters[name]
        if parameter.grad is None:
            return -1, 0.0, 0.0
        sizes = parameter.grad.detach().abs().flatten()
        index = int(sizes.argmax())
        if sizes[index] == 0:
            return -1, 0.0, 0.0
        return index, float(parameter.detach().flatten()[index]), float(sizes[index])

    @torch.no_grad()
    def after_step(self, learning_rate: float) -> None:
        """Cross off what has moved. What had a gradient must move in the first step, the rest within STEPS steps."""
        for name, (index, before, gradient) in self.largest.items():
            self.expected[name] = self.expected.get(name, 0.0) + learning_rate * gradient / (gradient + ADAM_EPS)
            if index >= 0 and float(self.parameters[name].flatten()[index]) != before:
                self.unmoved.discard(name)
                self.has_moved = True
        if not self.unmoved or learning_rate == 0:
            return
        self.steps += 1
        zero = [name for name in self.required if name in self.unmoved - self.had_gradient]
        stuck = [n for n in self.required if n in self.unmoved & self.had_gradient and not self._too_small_to_move(n)]
        last = self.steps == STEPS
        if stuck or (zero and last):
            raise DeltatuneError(no_movement(self.name, zero if last else [], stuck, len(self.required), self.steps))
        if last:
            self.unmoved.clear()

    def end(self, steps: int, learning_rate: float) -> None:
        """Raise DeltatuneError if nothing at all has moved in the whole run; `learning_rate` is its peak."""
        if self.parameters and not self.has_moved:
            raise DeltatuneError(nothing_moved(self.name, steps, len(self.parameters), learning_rate))

    def _too_small_to_move(self, name: str) -> bool:
        """Whether Adam's steps (at most the rate each) vanish in the rounding of the value: no bug, but a tiny rate."""
        index, value, _ = self.largest[name]
        return index < 0 or self.expected[name] < 4 * torch.finfo(self.parameters[name].dtype).eps * abs(value)


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


def no_movement(name: str, zero: Sequence[str], stuck: Sequence[str], total: int, steps: int) -> str:
    """The message for tensors that did not change."""
    unmoved = len(zero) + len(stuck)
    after = "the first step" if steps == 1 else f"{steps} steps"
    text = f"adapter {name!r}: {unmoved} of {total} trainable tensors did not change after {after}"
    if zero:
        text += f"\n{len(zero)} tensors had only zero gradients (not connected to the loss):{listed(zero)}"
    if stuck:
        text += (
            f"\n{len(stuck)} tensors had gradients but did not move (frozen, or not in the optimizer):{listed(stuck)}"
        )
    return text


def nothing_moved(name: str, steps: int, total: int, rate: float) -> str:
    """The message for a run in which nothing changed."""
    done = "1 step" if steps == 1 else f"{steps} steps"
    return (
        f"adapter {name!r} was not trained: none of its {total} trainable tensors changed in {done}\n"
        f"likely causes: a learning rate (here at most {rate:.2g}) that vanishes in the rounding of the values; "
        "gradients that are all zero, because the labels or the loss do not depend on the adapter"
    )
