"""Bank forms of Deltas: what several adapters have at one site as stacked tensors, of which each row takes its own.

A pass for rows of 32 adapters then costs a few batched products a site instead of 32 small ones. S-LoRA and Punica do
it for LoRA on GPUs: https://arxiv.org/abs/2311.03285, https://arxiv.org/abs/2310.18547.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from deltatune.core.delta import Delta
from deltatune.core.sites.site import Site


class SlotRows:
    """The slots of a call's rows. They say nothing about the number of rows where all have the same one."""

    def __init__(self, slots: Sequence[int], device: torch.device) -> None:
        self.slots = tuple(slots)
        self.index = torch.tensor(self.slots, device=device)
        self.only = self.slots[0] if len(set(self.slots)) == 1 else None
        """The slot of every row, if there is one."""
        first = self.slots[0]
        self.consecutive = self.slots == tuple(range(first, first + len(self.slots)))
        """Whether the slots follow each other, so that a stack is cut and not copied."""
        self.tables: dict[int, Tensor] = {}
        """Rows of tables with several rows for each slot, by their number; kept by those who need them."""


class BankDelta(Delta):
    """The Deltas of several adapters at one site. Slot 0 changes nothing; the others are written and cleared.

    Subclasses register stacks of tensors in `__init__`, write one Delta's values into a slot, and compute the change of
    rows from `of_rows`. `forward(x, h)` and `add` see the rows that `rows` lists.
    """

    rows: SlotRows
    """The slots of the rows of this call, set before it."""
    reads_shared: ClassVar[bool] = False
    """Whether `write_` wants the tensors that an adapter's Deltas share, as `shared.NAME`."""
    reads_base: ClassVar[bool] = False
    """Whether `write_` reads the base's weights, which then are its own: nothing is merged into them or acts."""

    def __init__(self, delta: Delta, site: Site, capacity: int, dtype: torch.dtype) -> None:
        """`delta`: one of those it will hold, without values; `capacity`: slots beside slot 0."""
        super().__init__()
        self.reads, self.needs = delta.reads, delta.needs
        self.capacity, self.dtype = capacity, dtype
        self.identities: dict[str, float] = {}
        """The value of each stack's entries at which a slot changes nothing."""
        self.kept: dict[str, tuple[tuple[int, ...], Tensor]] = {}
        """Stacks as the rows of the last step of decoding took them: the next step mostly has the same rows."""

    @classmethod
    def shape(cls, delta: Delta, site: Site) -> Hashable | None:
        """What Deltas have in common that share a bank at a site; None for a Delta that it cannot hold."""
        raise NotImplementedError(f"{cls.__name__} names no shape")

    @classmethod
    def tensor_shapes(cls, delta: Delta) -> dict[str, tuple[int, ...]]:
        """Shapes of a Delta's tensors by name."""
        return {name: tuple(tensor.shape) for name, tensor in delta.state_dict().items()}

    def takes(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether a Delta with these values may share the stacks: what it shares with the others must be the same."""
        return True

    def write_(self, slot: int, delta: Delta, tensors: Mapping[str, Tensor]) -> None:
        """Write one Delta into a slot: `delta` has its settings but no values, `tensors` its values by name."""
        raise NotImplementedError(f"{type(self).__name__} writes nothing")

    @staticmethod
    def connect_(members: Sequence[tuple[Site, BankDelta]]) -> None:
        """Connect a method's Deltas of this class, once: those that read the same may share a product."""

    # ---- for subclasses

    def add_stack(self, name: str, *shape: int, identity: float = 0.0, dtype: torch.dtype | None = None) -> None:
        """Register a stack of tensors of this shape, in the bank's dtype unless another is given."""
        stack = torch.full((self.capacity + 1, *shape), identity, dtype=dtype or self.dtype)
        self.register_buffer(name, stack, persistent=False)
        self.identities[name] = identity

    def write_stack_(self, name: str, slot: int, value: Tensor | float) -> None:
        """Write a slot of a stack; a value that is smaller than the stack's shape leaves the rest as the identity."""
        stack = self.get_buffer(name)
        here = stack[slot]
        if isinstance(value, Tensor) and value.shape != here.shape:
            here.fill_(self.identities[name])
            here = here[tuple(slice(size) for size in value.shape)]
        here.copy_(value) if isinstance(value, Tensor) else here.fill_(value)
        self.forget_(name, slot)

    def write_part_(self, name: str, slot: int, value: Tensor, start: int, size: int) -> None:
        """Write `size` entries of a slot's first dimension, from `start`; those beyond the value get the identity."""
        here = self.get_buffer(name)[slot, start : start + size]
        here.fill_(self.identities[name])
        here[: len(value)].copy_(value)
        self.forget_(name, slot)

    def forget_(self, name: str, slot: int) -> None:
        """Rows that took a slot of a stack take it again."""
        if name in self.kept:
            slots, kept = self.kept[name]
            self.kept[name] = tuple(-1 if taken == slot else taken for taken in slots), kept

    def of_rows(self, name: str, keep: bool = False) -> Tensor:
        """A stack for the rows of this call (B, ...), or (1, ...) where all rows have the same slot.

        keep: whether the next call will have the same rows, so that only those that changed are copied.
        """
        stack, rows = self.get_buffer(name), self.rows
        if rows.only is not None:
            return stack[rows.only : rows.only + 1]
        if rows.consecutive:
            return stack[rows.slots[0] : rows.slots[0] + len(rows.slots)]
        if not keep or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return stack.index_select(0, rows.index)
        slots, kept = self.kept.get(name, ((), stack))
        changed = [i for i, (old, new) in enumerate(zip(slots, rows.slots, strict=False)) if old != new]
        fresh = kept.is_inference() != torch.is_inference_mode_enabled()  # others may not be written in place
        if fresh or len(slots) != len(rows.slots) or 2 * len(changed) > len(slots):
            kept = stack.index_select(0, rows.index)
        elif changed:
            places = torch.tensor(changed, device=stack.device)
            kept.index_copy_(0, places, stack.index_select(0, rows.index[places]))
        self.kept[name] = rows.slots, kept
        return kept

    def vectors(self, name: str, like: Tensor) -> Tensor:
        """A stack of vectors for the rows of this call, shaped to meet those of `like` (B, ..., width)."""
        vectors = self.of_rows(name)  # (B or 1, width)
        return vectors.view(len(vectors), *[1] * (like.dim() - 2), -1)

    def factor(self, name: str, like: Tensor, weight: float | Tensor) -> Tensor:
        """A stack of numbers times the weights of the rows, shaped to multiply `like` (B, ...)."""
        factor = self.of_rows(name) * (weight.flatten() if isinstance(weight, Tensor) else weight)  # (B or 1,)
        return factor.view(-1, *[1] * (like.dim() - 1))

    # ---- for the bank

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> BankDelta:
        self.kept.clear()  # another device or dtype
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def clear_(self, slot: int) -> None:
        """Make a slot change nothing."""
        for name, identity in self.identities.items():
            self.write_stack_(name, slot, identity)

    def resize_(self, capacity: int) -> None:
        """Change the number of slots; the values of those that stay are kept."""
        self.capacity = capacity
        self.kept.clear()
        for name, identity in self.identities.items():
            old = self.get_buffer(name)
            stack = old.new_full((capacity + 1, *old.shape[1:]), identity)
            stack[: len(old)] = old[: capacity + 1]
            self.register_buffer(name, stack, persistent=False)

    @property
    def bytes(self) -> int:
        """Bytes of its stacks."""
        stacks = [self.get_buffer(name) for name in self.identities]
        return sum(stack.numel() * stack.element_size() for stack in stacks)


def bank_form(delta: Delta) -> type[BankDelta] | None:
    """The form in which a bank holds Deltas of exactly this class."""
    form = vars(type(delta)).get("bank_form")
    return form if isinstance(form, type) and issubclass(form, BankDelta) else None


def bucket(size: int) -> int:
    """The size to which a rank or a length is padded: the next power of two."""
    return 1 << (max(1, size) - 1).bit_length()
