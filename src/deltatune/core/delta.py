"""Deltas: small modules that return a change of a representation.

The one rule is `h <- h + sum_i w_i * Delta_i(x, h)`: `x` is what a site reads, `h` the representation there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from deltatune.core.attention_call import AttentionCall
from deltatune.core.capabilities import Capabilities, Needs, TrainingHints, combine, misplaced_declarations
from deltatune.core.errors import raise_all
from deltatune.core.sites.base_weights import BaseWeights

Rng = Callable[[str], torch.Generator]
"""Returns the generator of one tensor: its values depend on (seed, tensor name) alone."""


def generator_for(seed: int, name: str) -> torch.Generator:
    """CPU generator seeded by (seed, name): independent of creation order, device and other tensors."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") % 2**63)


class Delta(nn.Module):
    """A change of one representation.

    Subclasses define `forward(x, h)`, which returns the change of `h`, of h's shape; it is written for `x` and `h` of
    shape (..., width). At kind `embed`, `x` are the token ids; at kind `input`, `x` is `h`, the input of the site's
    map. A Delta is always called as a module, never through its weights, so that sharding (FSDP) can gather them.
    """

    reads: Literal["input", "output", "normed"] = "input"
    """What `x` is: the site's input, its output `h`, or `h` after a post-LN block's own residual sum and LayerNorm."""
    capabilities: Capabilities = Capabilities()
    needs: Needs = Needs()
    hints: TrainingHints = TrainingHints()
    mask: Tensor | None = None
    """Real tokens (B, S) of the rows of this call, S the tokens so far, if `needs.padding_mask`; None if all are real,
    or in a decoder behind an encoder."""
    offsets: Tensor | None = None
    """Columns (B, T) of this call's tokens from the first one of each row's answer, if `needs.answer_offsets`: from 0
    in the answer, -1 at the prompt's last token. None outside decoders."""
    prompt_ids: Tensor | None = None
    """Token ids (B, T) of the input as given, of decoders the prompt's, if `needs.prompt_ids`: -1 at padding, virtual
    tokens and the answer. None where the call has no ids, as in steps of a decoder behind an encoder."""
    base: BaseWeights
    """The base's parameters at its site, set before `init_`."""
    dropout: float = 0.0
    """Probability of its dropout while training, if it has any."""
    forward: Callable[..., Any]
    bank_form: ClassVar[type[Delta] | None] = None
    """The `BankDelta` that holds several of exactly this class at one site; subclasses name their own."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        raise_all(misplaced_declarations(vars(cls)), f"{cls.__name__} declares what it can do in groups:")

    def add(self, h: Tensor, x: Tensor, weight: float | Tensor = 1.0) -> Tensor:
        """Return `h + weight * Delta(x, h)`; subclasses override it only to compute the same faster or exactly."""
        changed: Tensor = h + weight * self(x, h)
        return changed

    def init_(self, rng: Rng, base: nn.Module) -> None:
        """Set the initial values; `base` is the module at the site (never to be changed), `self.base` its weights."""

    def merge(self, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return changed copies of the base's parameters: `weight` (out, in) and `bias` (out,), sliced to the site."""
        raise NotImplementedError(f"{type(self).__name__} has no weight form")

    def low_rank_factors(self) -> tuple[Tensor, Tensor, float] | None:
        """(A, B, s) of its update s·B A of the weight, A (r, in), B (out, r), without gradients; None for most."""
        return None

    def penalty(self) -> Tensor | None:
        """The regulariser that its paper adds to the loss of each step; None for most."""
        return None

    @property
    def parts(self) -> Sequence[Delta]:
        """The Deltas that it is made of: itself alone, unless it gates, stacks or fuses others."""
        return (self,)

    def without_reparametrisation(self) -> Delta:
        """Return the Delta to keep after training: itself, unless training used a reparametrisation."""
        return self


class AttentionDelta(Delta):
    """A change inside attention (kind `kv`): `attend(call)` takes the place of `forward(x, h)`.

    Several at one attention each compute an output of their own; the changes of the plain output add up.
    """

    needs = Needs(longer_keys=True)
    initial_ids: tuple[int, ...] = ()
    """Token ids whose keys and values in the bare base are passed to `init_from_`, after `init_`."""

    def attend(self, call: AttentionCall) -> Any:
        """Return the output (B, T, H, K) of attention with the change, and the weights or None in their place."""
        raise NotImplementedError(f"{type(self).__name__} has no attend")

    def forward(self, call: AttentionCall) -> Any:
        return self.attend(call)

    def init_from_(self, keys: Tensor, values: Tensor) -> None:
        """Start from the keys and values (P, H_kv·K) of its `initial_ids`."""
        raise NotImplementedError(f"{type(self).__name__} cannot start from token ids")


class WeightDelta(Delta):
    """A trained value that stands in for one parameter of the base (kind `weight`)."""

    value: nn.Parameter


class ComputedWeight(Delta):
    """A value that is computed in each forward and stands in for one parameter of the base (kind `weight`)."""

    def weight(self, original: Tensor) -> Tensor:
        """The value that stands in for the base's parameter, of its shape; gradients reach the trained tensors."""
        raise NotImplementedError(f"{type(self).__name__} computes no weight")

    def sources(self) -> Sequence[Tensor]:
        """The tensors from which the value is computed, the base's parameter aside."""
        raise NotImplementedError(f"{type(self).__name__} names no sources")


class SharedModule(nn.Module):
    """Parameters that several Deltas of one adapter share, from `Method.share`: a prefix's MLP, VeRA's projections."""

    def init_(self, rng: Rng) -> None:
        """Set the initial values."""

    def after_init_(self) -> None:
        """Called once when all initial values of the adapter are set."""

    def before_forward(self) -> None:
        """Called once before each forward of the model."""


def relay_declarations_(delta: Delta) -> None:
    """Let a Delta made of others declare what its parts declare, beside its own; others stay as they are."""
    parts = [part for part in delta.parts if part is not delta]
    for part in parts:
        relay_declarations_(part)
    if parts:
        each = [delta, *parts]
        delta.capabilities = combine(Capabilities, [one.capabilities for one in each])
        delta.needs = combine(Needs, [one.needs for one in each])
        delta.hints = combine(TrainingHints, [one.hints for one in each])
