"""What: a Delta returns a change of a representation.

The one rule is `h <- h + sum_i w_i * Delta_i(x, h)`: `x` is what a site reads, `h` what is there.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from deltatune.core.sites.base_weights import Base

Rng = Callable[[str], torch.Generator]
"""Gives the generator of one tensor: its values depend on (seed, tensor name) alone."""


def generator_for(seed: int, name: str) -> torch.Generator:
    """CPU generator seeded by (seed, name): independent of creation order, device and other tensors."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") % 2**63)


class Delta(nn.Module):
    """A change of one representation. Subclasses are written for `x`, `h` of shape (..., width).

    What several Deltas of one adapter share is a module from `Method.share`. It has `init_(rng)`, and may have
    `begin()`, called once before each forward of the model, and `settle_()`, called when all initial values are there.
    """

    reads: Literal["input", "output", "normed"] = "input"
    """What `x` is: the site's input, its output `h`, or `h` after a post-LN block's own residual sum and LayerNorm."""
    mixes: bool = True
    """May share a batch with other adapters, of any method."""
    merges: bool = False
    """Has an exact weight form: `merge` gives the base's parameters with the change inside."""
    tokens: int = 0
    """Virtual tokens it needs in front of each row (kind `embed`)."""
    shift: int = 0
    """Positions by which it moves the real tokens (kind `kv`)."""
    lengthens: bool = True
    """Kind `kv`: puts keys in front of the model's own, so that causal masks must be written out."""
    stretch: float = 0.0
    """Factor by which it brings positions together, where rotations are computed from them (kind `kv`); 0 for none."""
    masked: bool = False
    """Wants `mask` set before each call."""
    mask: Tensor | None = None
    """Real tokens (B, S) of the rows of this call, S the tokens so far; None if all are, or in a decoder behind an
    encoder."""
    tapped: bool = False
    """Kind `kv`: wants `x`, the attention's input (B, T, D), in its call."""
    words: tuple[int, ...] = ()
    """Kind `kv`: token ids whose keys and values in the bare base are handed to `start_`, after `init_`."""
    base: Base
    """The base's parameters at its site, set before `init_`."""
    frozen: tuple[str, ...] = ()
    """Names of its parameters and modules that are not trained."""
    rates: Mapping[str, float] = {}
    """Factors on the learning rate of its parameters, by their name; 1 where none is given."""
    exact: bool = True
    """Whether its gradient is that of what it computes; papers detach parts on purpose."""
    compiles: bool = True
    """Whether `torch.compile` can trace it before it is finished (it cannot trace torch's LSTM)."""
    rests: bool = False
    """Whether a training step may leave it out, so that it gets no gradient there."""

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Return the change of `h`, of h's shape.

        At kind `embed`, `x` are the token ids; at kind `input`, x is h, the input of the site's map. At kind `kv` a
        Delta has `attend` in place of this.
        """
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def add(self, h: Tensor, x: Tensor, weight: float | Tensor = 1.0) -> Tensor:
        """Return `h + weight * Delta(x, h)`; subclasses override it only to compute the same faster or exactly."""
        changed: Tensor = h + weight * self(x, h)
        return changed

    def init_(self, rng: Rng, base: nn.Module) -> None:
        """Set the initial values; `base` is the module at the site (never to be changed); `self.base` its weights."""

    def start_(self, keys: Tensor, values: Tensor) -> None:
        """Start from keys and values (P, H_kv·K) of its `words`."""
        raise NotImplementedError(f"{type(self).__name__} starts from no words")

    def merge(self, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return changed copies of the base's parameters: `weight` (out, in) and `bias` (out,), sliced to the site."""
        raise NotImplementedError(f"{type(self).__name__} has no weight form")

    def penalty(self) -> Tensor | None:
        """What its paper adds to the loss of each step to keep it in bounds; None for most."""
        return None

    @property
    def parts(self) -> Sequence[Delta]:
        """The Deltas that it is made of: itself alone, unless it gates, stacks or fuses others."""
        return (self,)

    def finished(self) -> Delta:
        """Return what is kept after training: itself, unless training used a reparametrisation."""
        return self


class Own(Delta):
    """`Δ = own(x) − h`: a copy of the base's module that is trained in its place."""

    merges = True

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

    def merge(self, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.detach().to(base[name].dtype) for name, tensor in self.module.state_dict().items()}
