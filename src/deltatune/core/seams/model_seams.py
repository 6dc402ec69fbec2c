"""All seams of one model: together they make its forward pass follow a route."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from deltatune.core.adapter import Adapter
from deltatune.core.errors import DeltatuneError
from deltatune.core.route import Route
from deltatune.core.seams.attention import AttentionSeam
from deltatune.core.seams.hook_points import BatchContext
from deltatune.core.seams.hook_registry import HookRegistry
from deltatune.core.seams.position_ids import PositionShift
from deltatune.core.seams.soft_prompts import PromptSeam
from deltatune.core.seams.weight_override import WeightSeam
from deltatune.core.sites.site import Sites


class ModelSeams:
    """Hooks, soft prompts, position ids, replaced weights and attention of one model, installed once."""

    def __init__(self, model: nn.Module, sites: Sites) -> None:
        self.context = BatchContext()
        self.context.vocabulary = sites.facts.vocabulary
        self.hooks = HookRegistry(model, sites, self.context)
        self.weights = WeightSeam(model)
        self.positions = PositionShift(model, sites.facts.position_modules, self.context)
        self.prompts = PromptSeam(model, sites.facts, self.context)
        self.attention = AttentionSeam(model)
        self.active: Mapping[str, Adapter] = {}
        """Adapters that the forward pass calls: those of the route that are not merged."""
        model.register_forward_pre_hook(self._before_forward, with_kwargs=True)
        model.register_forward_hook(self._after_forward)
        if sites.facts.encoder_decoder and hasattr(model, "get_encoder"):
            encoder: Any = model.get_encoder()  # type: ignore[operator]
            encoder.register_forward_pre_hook(self.context.see_encoder, with_kwargs=True)

    def follow(self, route: Route, active: Mapping[str, Adapter]) -> None:
        """Make every seam follow a route; `active` are its adapters that are not merged."""
        self.active = active
        self.context.runs.clear()
        needs = {name: adapter.needs for name, adapter in active.items()}
        prompts = {name: need.virtual_tokens for name, need in needs.items() if need.virtual_tokens}
        shifts = {name: need.position_shift for name, need in needs.items() if need.position_shift}
        answer_shifts = {name: need.answer_shift for name, need in needs.items() if need.answer_shift}
        factors = {name: need.interpolation for name, need in needs.items() if need.interpolation}
        self.hooks.follow(route, {route.places[name][0] if name in route.places else name for name in active})
        self.prompts.route, self.prompts.lengths = route, prompts
        self.context.prompted = bool(prompts)
        offsets = any(need.answer_offsets for need in needs.values())
        self.prompts.answers.wanted = self.prompts.facts.decoder and offsets
        self.context.reads_prompt = any(need.prompt_ids for need in needs.values())
        self.positions.follow(route, shifts, answer_shifts, factors)
        self.weights.follow(active.values())
        self.attention.follow(*self.hooks.attention)

    def _before_forward(self, module: nn.Module, args: object, kwargs: Mapping[str, Any]) -> None:
        """Pre-hook of the whole model."""
        self.context.runs.clear()
        self.context.called = True
        if not torch.compiler.is_compiling():
            self.hooks.check_in_place()
        if "fused_lm_head" in kwargs:
            self._refuse_at_head()
        for adapter in self.active.values():
            adapter.before_forward()

    def _after_forward(self, module: nn.Module, args: object, output: object) -> None:
        """Hook of the whole model."""
        self.context.called = False

    def _refuse_at_head(self) -> None:
        """Raise DeltatuneError for adapters of a head whose weight is read in place of a call, as TRL's trainers do."""
        at_head = [n for n, adapter in self.active.items() if any(s.name == "lm_head" for s in adapter.sites.values())]
        if at_head:
            raise DeltatuneError(
                f"adapter {at_head[0]!r} changes the language-model head, which TRL's trainers do not call: they read "
                "its weight, and the adapter would not be trained. Leave lm_head out of its sites, or train it with "
                "deltatune.train or transformers' Trainer"
            )


def has_host(model: nn.Module) -> bool:
    """Whether a Host was made for a model: its seams stay, also without adapters."""
    return any(isinstance(getattr(hook, "__self__", None), ModelSeams) for hook in model._forward_pre_hooks.values())
