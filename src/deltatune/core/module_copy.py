"""A trained copy of one of the base's modules, as a Delta: task heads, norms, embeddings."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from deltatune.core.capabilities import Capabilities
from deltatune.core.delta import Delta, Rng


class ModuleCopy(Delta):
    """`Δ = copy(x) − h`: a copy of the base's module that is trained in its place."""

    capabilities = Capabilities(merges=True)

    def init_(self, rng: Rng, base: nn.Module) -> None:
        # Without its hooks: a copied hook point would still apply the adapters of the base's module.
        hooks = [registered for m in base.modules() for registered in (m._forward_hooks, m._forward_pre_hooks)]
        memo = {id(registered): type(registered)() for registered in hooks}
        self.module = copy.deepcopy(base, memo).requires_grad_(True)

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
