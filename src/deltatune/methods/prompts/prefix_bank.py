"""Key-value prefixes of several adapters at one attention as stacks; the padding of shorter ones is masked."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import Tensor

from deltatune.core.attention_call import AttentionCall
from deltatune.core.bank_delta import BankDelta, bucket
from deltatune.core.sites.site import Site

SHORTEST = 16
"""Length to which all shorter prefixes are padded, so that they share one call of attention."""


class KeyValuesBank(BankDelta):
    """Stacks P_k and P_v (S, P, H_kv·K), and which of them are real (S, P): in slot 0, none."""

    def __init__(self, delta: Any, site: Site, capacity: int, dtype: torch.dtype) -> None:
        super().__init__(delta, site, capacity, dtype)
        self.place = delta.place
        self.length = _padded(delta)
        for name in ("keys", "values"):
            self.add_stack(name, self.length, delta.keys.shape[1])
        self.add_stack("real", self.length, dtype=torch.bool)
        self.lengths = {0: 0}
        """Real lengths by slot."""

    @classmethod
    def shape(cls, delta: Any, site: Site) -> Hashable:
        return _padded(delta), delta.place

    def write_(self, slot: int, delta: Any, tensors: Mapping[str, Tensor]) -> None:
        keys = tensors["keys"]
        self.write_stack_("keys", slot, keys)
        self.write_stack_("values", slot, tensors["values"])
        self.write_stack_("real", slot, torch.ones(len(keys), dtype=torch.bool))
        self.lengths[slot] = len(keys)

    def clear_(self, slot: int) -> None:
        super().clear_(slot)
        self.lengths.pop(slot, None)

    def forward(self, call: AttentionCall) -> Any:
        return self.attend(call)

    def attend(self, call: AttentionCall) -> Any:
        """Return the output (B, T, H, K) of attention with each row's prefix, and the weights or None."""
        return call.prefixed(*self.placed(call), self.seen(call)).run()

    def placed(self, call: AttentionCall) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H_kv, P, K) for the rows of a call."""
        step, longest = call.q.shape[2] == 1, self.longest
        keys, values = (self.of_rows(name, keep=step)[:, :longest] for name in ("keys", "values"))
        return call.to_heads(keys), call.to_heads(values)

    def seen(self, call: AttentionCall) -> Tensor | None:
        """Which queries attend to which of them (B, 1 or T, P), or (B, T) where all to all or none; None if all do."""
        # The first word of the answer is predicted at the prompt's last token, as at the paper's separator after x.
        by_query = None if self.place == "prefix" or self.offsets is None else self.offsets >= -1  # (B, T)
        if not torch.compiler.is_compiling() and len({self.lengths[slot] for slot in self.rows.slots}) == 1:
            return by_query
        real = self.of_rows("real")[:, None, : self.longest].expand(len(call.q), -1, -1)  # (B, 1, P)
        return real if by_query is None else real & by_query.unsqueeze(-1)

    @property
    def longest(self) -> int:
        """The longest real prefix of the rows of this call; compiled, the padded length, so that one graph serves."""
        if torch.compiler.is_compiling():
            return self.length
        return max(self.lengths[slot] for slot in self.rows.slots)


def _padded(delta: Any) -> int:
    return max(SHORTEST, bucket(len(delta.keys)))
