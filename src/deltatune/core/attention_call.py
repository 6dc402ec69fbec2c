"""One call of attention as an attention Delta sees it: queries, keys, values, mask, and the function that runs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltatune.core.errors import DeltatuneError


@dataclass(frozen=True)
class AttentionCall:
    """A call of the attention seam: after RoPE and after the cache update, for self and cross attention."""

    run_with: Callable[..., Any]
    """The attention function: transformers' SDPA or the model's own eager one."""
    module: nn.Module
    q: Tensor
    """Queries (B, H, T, K)."""
    k: Tensor
    """Keys (B, H_kv, S, K)."""
    v: Tensor
    """Values (B, H_kv, S, K)."""
    mask: Tensor | None
    """True or 0 where a query attends, (B or 1, 1 or H, T, S); None if every query attends to every key."""
    options: Mapping[str, Any]
    """The model's other arguments: scaling, dropout, T5's `position_bias` (1 or B, H, T, S)."""
    x: Tensor | None = None
    """The attention's input (B, T, D), for Deltas that need it."""

    def run(self) -> Any:
        """Compute the output (B, T, H, K) and the weights, or None in their place."""
        return self.run_with(self.module, self.q, self.k, self.v, self.mask, **self.options)

    def rows(self, rows: Tensor | None) -> AttentionCall:
        """The call for some rows of the batch (None: all)."""
        if rows is None:
            return self
        batch = self.q.shape[0]

        def select(tensor: Any) -> Any:
            per_row = isinstance(tensor, Tensor) and tensor.dim() > 2 and tensor.shape[0] == batch
            return tensor.index_select(0, rows) if per_row else tensor

        options = {name: select(option) for name, option in self.options.items()}
        q, k, v = select(self.q), select(self.k), select(self.v)
        return replace(self, q=q, k=k, v=v, mask=select(self.mask), x=select(self.x), options=options)

    def prefixed(self, keys: Tensor, values: Tensor, seen: Tensor | None = None) -> AttentionCall:
        """The call with keys and values (B, H_kv, P, K) in front.

        `seen`: which queries attend to them, (B, T), or (B, 1 or T, P) where that differs among them; None: all.
        """
        if self.mask is None and getattr(self.module, "is_causal", False) and self.q.shape[2] > 1:
            raise DeltatuneError(
                "a causal model reached attention without a mask; key-value prefixes cannot be placed safely"
            )
        length, mask, options = keys.shape[2], self.mask, self.options
        if seen is not None:
            mask = self._partly_seen(seen, length)
        elif mask is not None:
            mask = F.pad(mask, (length, 0), value=mask.dtype == torch.bool)  # True attends; additive masks add 0
        if options.get("position_bias") is not None:  # T5: no bias towards the prefix
            options = {**options, "position_bias": F.pad(options["position_bias"], (length, 0))}
        k, v = torch.cat([keys, self.k], 2), torch.cat([values, self.v], 2)
        return replace(self, k=k, v=v, mask=mask, options=options)

    def _partly_seen(self, seen: Tensor, length: int) -> Tensor:
        """The mask (B, 1 or H, T, P + S) with P keys in front, each of which only some queries attend to."""
        rows, _, queries, _ = self.q.shape
        mask = self.q.new_zeros(1, 1, 1, self.k.shape[2]) if self.mask is None else self.mask
        mask = mask.expand(rows, -1, queries, -1)
        by_key = seen.unsqueeze(-1) if seen.dim() == 2 else seen
        front = by_key[:, None].expand(-1, mask.shape[1], queries, length)  # (B, 1 or H, T, P)
        if mask.dtype != torch.bool:
            front = torch.zeros_like(front, dtype=mask.dtype).masked_fill(~front, torch.finfo(mask.dtype).min)
        return torch.cat([front, mask], -1)

    def to_heads(self, prefix: Tensor) -> Tensor:
        """Prefix vectors (P, H_kv·K), or of each row (B or 1, P, H_kv·K), as (B, H_kv, P, K), in the keys' dtype."""
        rows, heads, _, width = self.k.shape
        by_head = prefix.reshape(*prefix.shape[:-1], heads, width)
        split = by_head.transpose(-3, -2).to(self.k.dtype)  # (..., H_kv, P, K)
        return split.expand(rows, -1, -1, -1)
