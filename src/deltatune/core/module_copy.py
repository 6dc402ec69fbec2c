"""Copies of the base's modules that are trained in their place, and norms of several adapters as stacks."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from deltatune.core.bank_delta import BankDelta
from deltatune.core.capabilities import Capabilities
from deltatune.core.delta import Delta, Rng, generator_for
from deltatune.core.quantization.plain_map import plain_map
from deltatune.core.quantization.stored_weights import stored_weight
from deltatune.core.sites.site import Site


class NormBank(BankDelta):
    """Trained norms: `y = n(x) ⊙ (w + o) + b`, n the norm without weights; stacks w (S, D), b (S, D), in float32.

    Slots that hold a norm replace h by y; the others leave h as it is. Copies of other modules have no stacks.
    """

    def __init__(self, delta: Delta, site: Site, capacity: int, dtype: torch.dtype) -> None:
        super().__init__(delta, site, capacity, dtype)
        plain = plain_norm(delta.base.module)
        assert plain is not None
        self.norm, self.offset = plain
        for name, parameter in list(self.norm.named_parameters()):
            delattr(self.norm, name)
            self.norm.register_buffer(name, parameter.detach(), persistent=False)
        wide = torch.promote_types(dtype, torch.float32)
        for name in ("weight", "bias"):
            self.add_stack(name, site.width_out, dtype=wide)
        self.add_stack("on", dtype=wide)

    @classmethod
    def shape(cls, delta: Delta, site: Site) -> Hashable | None:
        return site.width_out if site.kind == "norm" and plain_norm(delta.base.module) is not None else None

    @classmethod
    def tensor_shapes(cls, delta: Delta) -> dict[str, tuple[int, ...]]:
        return {f"module.{name}": tuple(tensor.shape) for name, tensor in delta.base.module.state_dict().items()}

    def write_(self, slot: int, delta: Delta, tensors: Mapping[str, Tensor]) -> None:
        self.write_stack_("weight", slot, tensors["module.weight"])
        self.write_stack_("bias", slot, tensors.get("module.bias", 0.0))
        self.write_stack_("on", slot, 1.0)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.add(h, x) - h

    def add(self, h: Tensor, x: Tensor, weight: float | Tensor = 1.0) -> Tensor:
        w, b = self.vectors("weight", h), self.vectors("bias", h)
        y: Tensor = self.norm(x.to(w.dtype)) * (w + self.offset) + b
        wide = h.to(y.dtype)
        return (wide + self.factor("on", h, weight) * (y - wide)).to(h.dtype)


def plain_norm(module: nn.Module) -> tuple[nn.Module, float] | None:
    """A norm without weights n and its offset o, where `module(x)` is `n(x) ⊙ (weight + o) + bias`; else None.

    o is 1 in norms whose weight is stored as a difference from 1 (Gemma).
    """
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    if not {"weight"} <= shapes.keys() <= {"weight", "bias"} or len(set(shapes.values())) > 1:
        return None
    if next(module.buffers(), None) is not None or any(len(shape) != 1 for shape in shapes.values()):
        return None
    with torch.inference_mode(False), torch.no_grad():
        norm = _without_hooks(module).requires_grad_(False)
        norm.to(torch.promote_types(norm.get_parameter("weight").dtype, torch.float32))
        weight, bias = norm.get_parameter("weight"), dict(norm.named_parameters()).get("bias")
        if weight.is_meta:
            return None
        x, w, b = (torch.randn(len(weight), generator=generator_for(0, name)).to(weight) for name in "xwb")

        def output(w: Tensor | float, b: Tensor | float) -> Tensor:
            weight.copy_(torch.as_tensor(w))
            if bias is not None:
                bias.copy_(torch.as_tensor(b))
            out: Tensor = norm(x[None, None])
            return out

        expected_b = 0.0 if bias is None else b
        offset = float(bool(output(0.0, 0.0).any()))
        wanted = output(w, b)
        plain = output(1.0 - offset, 0.0)
        fits = torch.allclose(wanted, plain * (w + offset) + expected_b, rtol=1e-4, atol=1e-5)
    return (norm, offset) if fits else None


def _without_hooks(module: nn.Module) -> nn.Module:
    """A copy of a module. A copied hook point would still apply the adapters of the base's module."""
    hooks = [registered for m in module.modules() for registered in (m._forward_hooks, m._forward_pre_hooks)]
    memo: dict[int, Any] = {id(registered): type(registered)() for registered in hooks}
    return copy.deepcopy(module, memo)


class ModuleCopy(Delta):
    """`Δ = copy(x) − h`: a copy of the base's module that is trained in its place."""

    capabilities = Capabilities(merges=True)
    bank_form = NormBank

    def init_(self, rng: Rng, base: nn.Module) -> None:
        self.module = _without_hooks(base)
        for path, part in list(self.module.named_modules()):
            if stored_weight(part) is not None:  # codes have no gradient: the copy holds the values that they stand for
                if path:
                    self.module.set_submodule(path, plain_map(part))
                else:
                    self.module = plain_map(part)
        self.module.requires_grad_(True)

    def output(self, x: Tensor) -> Tensor:
        """The copy's output, in x's dtype: the copy is float32 also beside a base in bfloat16."""
        out: Tensor = self.module(x.to(next(self.module.parameters()).dtype))
        return out.to(x.dtype)

    def embed(self, ids: Tensor, h: Tensor) -> Tensor:
        """The copy's vectors of token ids, in h's dtype; virtual tokens keep theirs."""
        last = len(self.module.get_parameter("weight")) - 1
        out: Tensor = self.module(ids.clamp(max=last))
        return torch.where((ids <= last).unsqueeze(-1), out.to(h.dtype), h)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return (self.output(x) if x.is_floating_point() else self.embed(x, h)) - h

    def add(self, h: Tensor, x: Tensor, weight: float | Tensor = 1.0) -> Tensor:
        out = self.output(x) if x.is_floating_point() else self.embed(x, h)
        return out if isinstance(weight, float) and weight == 1.0 else h + weight * (out - h)

    def merge(self, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.detach().to(base[name].dtype) for name, tensor in self.module.state_dict().items()}
