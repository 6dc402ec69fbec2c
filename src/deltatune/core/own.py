"""A module of the base that the adapter has a copy of: heads, LayerNorms and embeddings adapt this way."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from deltatune.core.delta import Delta, Rng


class Own(Delta):
    """`Δ = own(x) − h`: a copy of the base's module that is trained in its place."""

    folds = True

    def init_(self, rng: Rng, base: nn.Module) -> None:
        # Without its hooks: they are ports, and a copied port would go on to do what other adapters do at the base's.
        hooks = [found for m in base.modules() for found in (m._forward_hooks, m._forward_pre_hooks)]
        self.module = copy.deepcopy(base, {id(found): type(found)() for found in hooks}).requires_grad_(True)

    def own(self, x: Tensor) -> Tensor:
        """The copy's output, in x's dtype: the copy is float32 also beside a base in bfloat16."""
        out: Tensor = self.module(x.to(next(self.module.parameters()).dtype))
        return out.to(x.dtype)

    def looked_up(self, ids: Tensor, h: Tensor) -> Tensor:
        """The copy's vectors of token ids, in h's dtype; virtual tokens are not its own."""
        last = len(self.module.get_parameter("weight")) - 1
        out: Tensor = self.module(ids.clamp(max=last))
        return torch.where((ids <= last).unsqueeze(-1), out.to(h.dtype), h)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return (self.own(x) if x.is_floating_point() else self.looked_up(x, h)) - h

    def add(self, h: Tensor, x: Tensor, weight: float | Tensor = 1.0) -> Tensor:
        out = self.own(x) if x.is_floating_point() else self.looked_up(x, h)
        return out if isinstance(weight, float) and weight == 1.0 else h + weight * (out - h)

    def fold(self, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.detach().to(base[name].dtype) for name, tensor in self.module.state_dict().items()}
