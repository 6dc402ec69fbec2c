"""LoRAs of several adapters at one matrix as stacks: row b gets `s_b · B_b A_b x`, in two batched products.

Ranks are padded with zeros, which is exact. https://arxiv.org/abs/2311.03285
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from deltatune.core.bank_delta import BankDelta, SlotRows, bucket
from deltatune.core.sites.site import Site
from deltatune.methods.low_rank.shared_input import input_of


class LowRankBank(BankDelta):
    """Stacks A (S, R, in) and s·Bᵀ (S, R, out). Those that read the same input share one stack of As."""

    def __init__(self, delta: Any, site: Site, capacity: int, dtype: torch.dtype) -> None:
        super().__init__(delta, site, capacity, dtype)
        self.rank = self.padded_rank(delta)
        self.add_stack("A", self.rank, site.width_in)
        self.add_stack("B", self.rank, site.width_out)
        self.part = 0
        """Which part of the common stack of As is its own."""
        self.input = CommonInput([self])

    @classmethod
    def shape(cls, delta: Any, site: Site) -> Hashable:
        return cls.padded_rank(delta)

    @staticmethod
    def padded_rank(delta: Any) -> int:
        """The rank R of a Delta's stacks."""
        return bucket(len(delta.A))

    @staticmethod
    def connect_(members: Sequence[tuple[Site, BankDelta]]) -> None:
        together: dict[tuple[str, int, int], list[LowRankBank]] = {}
        for site, delta in members:
            assert isinstance(delta, LowRankBank)
            together.setdefault((input_of(site), site.width_in, delta.rank), []).append(delta)
        for deltas in together.values():
            if len(deltas) > 1:
                CommonInput(deltas).join_()

    def write_(self, slot: int, delta: Any, tensors: Mapping[str, Tensor]) -> None:
        self.write_factors_(slot, tensors["A"], delta.scale * wide(tensors["B"]))

    def write_factors_(self, slot: int, A: Tensor, B: Tensor) -> None:
        """Write A (r, in) and B (out, r), which has the scale in it."""
        self.input.write_(self, slot, A)
        self.write_stack_("B", slot, B.T)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.changed(None, x, h, 1.0)

    def add(self, h: Tensor, x: Tensor, weight: float | Tensor = 1.0) -> Tensor:
        return self.changed(h, x, h, weight)

    def changed(self, onto: Tensor | None, x: Tensor, h: Tensor, weight: float | Tensor) -> Tensor:
        """`weight · s B A x` of h's shape and dtype, added to `onto` if that is given."""
        low = self.input.product(self, x)  # (B, T, R), or (B·T, R) where all rows have one slot
        if isinstance(weight, Tensor):
            low = low.reshape(len(weight), -1, self.rank) * weight.to(low.dtype).view(-1, 1, 1)
        elif weight != 1.0:
            low = low * weight
        if self.rows.only is not None:
            B, flat = self.get_buffer("B")[self.rows.only], low.reshape(-1, self.rank)
            if onto is not None and onto.dtype == low.dtype:
                return torch.addmm(onto.reshape(-1, onto.shape[-1]), flat, B).view_as(h)
            change = flat @ B
        elif low.shape[1] == 1 and self.reads_in_place(low):
            table = self.get_buffer("B").flatten(0, 1)  # (S·R, out)
            change = F.embedding_bag(self.rows_of_table(), table, mode="sum", per_sample_weights=low[:, 0].contiguous())
        else:
            B = self.of_rows("B", keep=low.shape[1] == 1)
            if onto is not None and onto.dtype == low.dtype:
                return torch.baddbmm(onto.reshape(len(low), -1, B.shape[-1]), low, B).view_as(h)
            change = torch.bmm(low, B)
        change = change.view_as(h)
        return change.to(h.dtype) if onto is None else (onto + change).to(h.dtype)

    def reads_in_place(self, low: Tensor) -> bool:
        """Whether each row's B is read where it lies, without a copy: as a sum of rows of the stack with weights.

        torch has that sum for weights of the stack's type alone, and autocast may compute in another one.
        """
        same = low.dtype == self.get_buffer("B").dtype
        return same and low.device.type == "cpu" and not torch.is_grad_enabled()

    def rows_of_table(self) -> Tensor:
        """The rows (B, R) of the stack of Bs, as a table of S·R rows, that the rows of this call take."""
        return table_rows(self.rows, self.rank)


class LowRankTableBank(BankDelta):
    """LoRAs of a token embedding: stacks A (S, V, R) and s·Bᵀ (S, R, D). Virtual ids get nothing."""

    def __init__(self, delta: Any, site: Site, capacity: int, dtype: torch.dtype) -> None:
        super().__init__(delta, site, capacity, dtype)
        self.rank, self.vocabulary = bucket(len(delta.A)), delta.A.shape[1]
        self.add_stack("A", self.vocabulary, self.rank)
        self.add_stack("B", self.rank, site.width_out)

    @classmethod
    def shape(cls, delta: Any, site: Site) -> Hashable:
        return bucket(len(delta.A)), delta.A.shape[1]

    def write_(self, slot: int, delta: Any, tensors: Mapping[str, Tensor]) -> None:
        scale = delta.scale * float(getattr(delta.base.module, "embed_scale", 1.0))
        self.write_stack_("A", slot, tensors["A"].T)
        self.write_stack_("B", slot, scale * wide(tensors["B"]).T)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        row = self.rows.index[:, None] * self.vocabulary + x.clamp(max=self.vocabulary - 1)  # (B, T)
        low = F.embedding(row, self.get_buffer("A").flatten(0, 1))  # (B, T, R)
        low = low.masked_fill((x >= self.vocabulary).unsqueeze(-1), 0)
        return torch.matmul(low, self.of_rows("B", keep=x.shape[1] == 1)).to(h.dtype)


def wide(tensor: Tensor) -> Tensor:
    """A tensor in float32, or in its own dtype if that is wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def table_rows(rows: SlotRows, rank: int) -> Tensor:
    """Numbers (B, R) of the rows of slots in a table with R rows for each slot; kept with the slots."""
    if rank not in rows.tables:
        rows.tables[rank] = rows.index[:, None] * rank + torch.arange(rank, device=rows.index.device)
    return rows.tables[rank]


class CommonInput:
    """The product of one input with the As of all that read it: the first one's stack holds them side by side."""

    def __init__(self, members: Sequence[LowRankBank]) -> None:
        self.members = list(members)
        for part, member in enumerate(members):
            member.part = part
        self.x: Tensor | None = None
        self.rows: SlotRows | None = None
        self.low: Tensor | None = None
        self.left: set[int] = set()
        """The parts of `low` that are still to be taken."""

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "x": None, "low": None, "left": set()}  # intermediate values are neither copied nor saved

    def join_(self) -> None:
        """Let the members use it; the first one's stack is made as long as all of theirs."""
        first = self.members[0]
        width = first.get_buffer("A").shape[-1]
        for member in self.members:
            member.input = self
            del member.A, member.identities["A"]
        first.add_stack("A", len(self.members) * first.rank, width)

    def write_(self, member: LowRankBank, slot: int, A: Tensor) -> None:
        """Write a member's A (r, in) into a slot."""
        start = member.part * member.rank
        self.members[0].write_part_("A", slot, A, start, member.rank)

    def product(self, member: LowRankBank, x: Tensor) -> Tensor:
        """`x Aᵀ` with one member's A: (B, T, R); (N, R) for all N tokens where all rows have the same slot."""
        fresh = x is not self.x or member.rows is not self.rows or member.part not in self.left
        if fresh or torch.compiler.is_compiling():
            self.low = self.whole(x, member.rows)
            self.x, self.rows, self.left = x, member.rows, set(range(len(self.members)))
        low = self.low
        assert low is not None
        self.left.discard(member.part)
        if not self.left or torch.compiler.is_compiling():
            self.x, self.low, self.left = None, None, set()
        return low[..., member.part * member.rank : (member.part + 1) * member.rank]

    def whole(self, x: Tensor, rows: SlotRows) -> Tensor:
        """The product with the As of all members."""
        first = self.members[0]
        first.rows = rows
        x = x.to(first.get_buffer("A").dtype)
        if rows.only is not None:
            return F.linear(x.flatten(0, -2), first.get_buffer("A")[rows.only])
        x = x.reshape(len(rows.slots), -1, x.shape[-1])  # (B, T, in)
        A = first.of_rows("A", keep=x.shape[1] == 1)
        return torch.bmm(A, x.transpose(1, 2)).transpose(1, 2)  # for few tokens faster than x Aᵀ
