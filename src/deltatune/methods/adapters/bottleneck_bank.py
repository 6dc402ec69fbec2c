"""Two-layer networks of several adapters at one site as stacks: row b gets `s_b · (U_b f(D_b x + b_D) + b_U)`.

The scale s is inside U and b_U.

Widths are padded with zeros, which is exact: a unit without a row of U adds nothing.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from deltatune.core.bank_delta import BankDelta, bucket
from deltatune.core.sites.site import Site


class TwoLayerBank(BankDelta):
    """Stacks D (S, m, in) and s·Uᵀ (S, m, out), and their biases (S, m) and (S, out)."""

    def __init__(self, delta: Any, site: Site, capacity: int, dtype: torch.dtype) -> None:
        super().__init__(delta, site, capacity, dtype)
        size, width_in, width_out = self.widths(delta, site)
        self.activation = delta.activation
        self.add_stack("down", size, width_in)
        self.add_stack("down_bias", size)
        self.add_stack("up", size, width_out)
        self.add_stack("up_bias", width_out)

    @classmethod
    def shape(cls, delta: Any, site: Site) -> Hashable:
        return (*cls.widths(delta, site), delta.reads, delta.activation)

    @staticmethod
    def widths(delta: Any, site: Site) -> tuple[int, int, int]:
        """The padded size m, and the widths in and out."""
        return bucket(len(delta.down)), delta.down.shape[1], len(delta.up)

    def write_(self, slot: int, delta: Any, tensors: Mapping[str, Tensor]) -> None:
        scale = tensors.get("scale", delta.scale)
        self.write_maps_(slot, tensors["down"], tensors["up"], scale, tensors["down_bias"], tensors["up_bias"])

    def write_maps_(
        self,
        slot: int,
        down: Tensor,
        up: Tensor,
        scale: Tensor | float = 1.0,
        down_bias: Tensor | float = 0.0,
        up_bias: Tensor | float = 0.0,
    ) -> None:
        """Write D (m, in) and U (out, m) with their biases, and the scale."""
        wide = torch.promote_types(up.dtype, torch.float32)
        self.write_stack_("down", slot, down)
        self.write_stack_("up", slot, scale * up.T.to(wide))
        self.write_stack_("down_bias", slot, down_bias)
        self.write_stack_("up_bias", slot, scale * (up_bias.to(wide) if isinstance(up_bias, Tensor) else up_bias))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.change(x, h, 1.0).to(h.dtype)

    def add(self, h: Tensor, x: Tensor, weight: float | Tensor = 1.0) -> Tensor:
        return (h + self.change(x, h, weight)).to(h.dtype)

    def change(self, x: Tensor, h: Tensor, weight: float | Tensor) -> Tensor:
        """`weight · s · (U f(D x + b_D) + b_U)`, of h's shape."""
        out = self.network(x, h)
        return out if isinstance(weight, float) and weight == 1.0 else out * weight

    def network(self, x: Tensor, h: Tensor) -> Tensor:
        """`s · (U f(D x + b_D) + b_U)`, of h's shape."""
        x = x.to(self.get_buffer("down").dtype)
        if (slot := self.rows.only) is not None:
            inner = self.activation(F.linear(x, self.get_buffer("down")[slot], self.get_buffer("down_bias")[slot]))
            return F.linear(inner, self.get_buffer("up")[slot].T, self.get_buffer("up_bias")[slot])
        x = x.reshape(len(x), -1, x.shape[-1])  # (B, T, in)
        step = x.shape[1] == 1
        D, U = self.of_rows("down", keep=step), self.of_rows("up", keep=step)
        down_bias, up_bias = self.of_rows("down_bias", keep=step), self.of_rows("up_bias", keep=step)
        inner = self.activation(torch.baddbmm(down_bias.unsqueeze(1), x, D.transpose(1, 2)))  # (B, T, m)
        return torch.baddbmm(up_bias.unsqueeze(1), inner.to(U.dtype), U).view_as(h)


class KroneckerBank(TwoLayerBank):
    """Compacter's networks: a slot holds the matrices that the sums of Kronecker products stand for."""

    reads_shared = True

    @staticmethod
    def widths(delta: Any, site: Site) -> tuple[int, int, int]:
        return bucket(len(delta.down_bias)), site.width_in, site.width_out

    def write_(self, slot: int, delta: Any, tensors: Mapping[str, Tensor]) -> None:
        A = tensors["shared.A"]
        down, up = (kronecker_sum(A, tensors[f"{name}.s"], tensors[f"{name}.t"]) for name in ("down", "up"))
        self.write_maps_(slot, down, up, 1.0, tensors["down_bias"], tensors["up_bias"])


def kronecker_sum(A: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """W (out, in), Wᵀ = Σ_i A_i ⊗ (s_i t_iᵀ), of A (n, n, n), s (n, in/n, 1), t (n, 1, out/n); in float32 or wider."""
    A, s, t = (each.to(torch.promote_types(each.dtype, torch.float32)) for each in (A, s.squeeze(2), t.squeeze(1)))
    return torch.einsum("iab,ip,iq->bqap", A, s, t).flatten(2).flatten(0, 1)


class UnifiedBank(TwoLayerBank):
    """Networks of the unified view, without biases; gated ones, `λ · (U f(D x) − h)`, take λ of h away."""

    def __init__(self, delta: Any, site: Site, capacity: int, dtype: torch.dtype) -> None:
        super().__init__(delta, site, capacity, dtype)
        self.gated = delta.composition == "gated"
        if self.gated:
            self.add_stack("gate")

    @classmethod
    def shape(cls, delta: Any, site: Site) -> Hashable:
        return (super().shape(delta, site), delta.composition == "gated")

    @staticmethod
    def widths(delta: Any, site: Site) -> tuple[int, int, int]:
        # A softmax over the units would see those that are padded.
        size = len(delta.down) if delta.across_units else bucket(len(delta.down))
        return size, delta.down.shape[1], len(delta.up)

    def write_(self, slot: int, delta: Any, tensors: Mapping[str, Tensor]) -> None:
        scale = tensors.get("scale", delta.factor)
        self.write_maps_(slot, tensors["down"], tensors["up"], scale)
        if self.gated:
            self.write_stack_("gate", slot, scale)

    def network(self, x: Tensor, h: Tensor) -> Tensor:
        out = super().network(x, h)
        return out - self.factor("gate", h, 1.0).to(h.dtype) * h if self.gated else out
