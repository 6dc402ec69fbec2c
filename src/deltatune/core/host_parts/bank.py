"""A bank: many adapters on one base in slots of stacked tensors, put in and taken out while the model runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from deltatune.core.adapter import Adapter
from deltatune.core.adapter_shape import AdapterShape, adapter_shape, mismatches, shared_tensors
from deltatune.core.bank_delta import BankDelta, bank_form
from deltatune.core.capabilities import Capabilities, Needs
from deltatune.core.delta import Delta
from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.core.host_parts.adapter_module import adapter_module, drop_module_
from deltatune.core.method import Method
from deltatune.core.seams.hook_registry import HookRegistry
from deltatune.core.sites.site import Site, Sites

if TYPE_CHECKING:
    from deltatune.core.host import Host

FIRST_SLOTS = 4
"""Slots of a new group; it doubles them as adapters come."""


class BankFull(DeltatuneError):
    """Every slot of a bank is taken."""


class BankedAdapter(Adapter):
    """An adapter whose tensors are in a bank: its method, head and metadata, and the slot."""

    def __init__(self, method: Method, head: nn.Module | None, extra: Mapping[str, Any], shape: AdapterShape) -> None:
        super().__init__(method, head, extra)
        self.shape = [shape]  # in a list: its Deltas without values are no part of this module
        self.slot = 0
        self.entry_bytes = 4
        """Bytes of a number in its stacks."""
        self.trained_rows = None

    @property
    def capabilities(self) -> Capabilities:
        return self.shape[0].capabilities

    @property
    def needs(self) -> Needs:
        return self.shape[0].needs

    @property
    def count(self) -> int:
        return self.shape[0].count

    @property
    def acting_sites(self) -> Sequence[Site]:
        return self.shape[0].adapter.acting_sites

    @property
    def bytes(self) -> int:
        """Bytes of its tensors, without the padding of their slot."""
        return self.entry_bytes * sum(map(math.prod, self.shape[0].shapes.values())) + super().bytes


class BankGroup(Adapter):
    """The adapters of a bank that share stacks: one `BankDelta` at each of their sites."""

    def __init__(self, name: str, method: Method, shape: AdapterShape, slots: int, dtype: torch.dtype) -> None:
        super().__init__(method, None, {})
        self.name, self.key = name, shape.key
        self.slots = min(FIRST_SLOTS, slots)
        self.members: dict[str, int] = {}
        by_class: dict[tuple[str, type[BankDelta]], list[tuple[Site, BankDelta]]] = {}
        for key, site, delta in shape.adapter.entries():
            form = bank_form(delta)
            assert form is not None
            together = form(delta, site, self.slots, dtype)
            self.put(key, site, together)
            by_class.setdefault((key.partition(".")[0], form), []).append((site, together))
        for (_, form), members in by_class.items():
            form.connect_(members)

    def bank_deltas(self) -> Iterator[tuple[str, BankDelta]]:
        """(key, BankDelta) in model order."""
        for key, _, delta in self.entries():
            assert isinstance(delta, BankDelta)
            yield key, delta

    def free_slot(self, most: int) -> int:
        """A slot that nobody has; the stacks grow where all are taken, to `most` slots."""
        taken = set(self.members.values())
        if len(taken) == self.slots:
            self.slots = min(2 * self.slots, most)
            for _, delta in self.bank_deltas():
                delta.resize_(self.slots)
        return next(slot for slot in range(1, self.slots + 1) if slot not in taken)

    @property
    def bytes(self) -> int:
        """Bytes of its stacks."""
        return sum(delta.bytes for _, delta in self.bank_deltas())


class Bank:
    """Adapters in slots. `Host.bank` makes the one of a Host; routes name its adapters as they do attached ones.

    Adapters of one kind of method that act at the same sites share stacks of tensors, of which each row of a batch
    takes its slot; ranks and lengths are padded, so that LoRAs of rank 5 and of rank 8 share a group.
    """

    def __init__(
        self, host: Host, hooks: HookRegistry, release: Callable[[str], None], dtype: torch.dtype | None
    ) -> None:
        """`release`: takes an adapter out of the host's route and adapters."""
        self.host, self.hooks, self.release = host, hooks, release
        self.model, self.sites, self.adapters = host.model, host.sites, host.adapters
        self.slots = 64
        """Most adapters that it holds."""
        self.dtype = dtype or self._like.dtype
        self.groups: dict[str, BankGroup] = {}
        self.places: dict[str, tuple[str, int]] = {}
        """Group and slot of each adapter."""
        self._shapes: dict[tuple[Method, str | None], AdapterShape] = {}
        self._made = 0

    @property
    def _like(self) -> Tensor:
        """A parameter of the model, on whose device the stacks are."""
        return next(parameter for parameter in self.model.parameters() if parameter.is_floating_point())

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters in it."""
        return tuple(self.places)

    @property
    def bytes(self) -> int:
        """Bytes of all stacks."""
        return sum(group.bytes for group in self.groups.values())

    def check(self, slots: int | None, dtype: torch.dtype | None) -> None:
        """Set the number of slots. Raises DeltatuneError for fewer than adapters in it, and for another dtype."""
        problems = [f"the bank's tensors are {self.dtype}, not {dtype}"] if dtype not in (None, self.dtype) else []
        if slots is not None and slots < max(1, len(self.places)):
            problems.append(f"slots={slots} is too few: the bank has {len(self.places)} adapters; 1 is the least")
        raise_all(problems)
        self.slots = slots or self.slots

    def can_hold(self, method: Method, sites: Sites | None = None) -> bool:
        """Whether adapters of a method can be put into it on this base; others are attached."""
        return self.shape_of(method, sites).key is not None

    def put(
        self,
        name: str,
        method: Method,
        tensors: Mapping[str, Tensor],
        *,
        head: nn.Module | None = None,
        extra: Mapping[str, Any] | None = None,
        seed: int = 0,
        sites: Sites | None = None,
    ) -> BankedAdapter:
        """Write an adapter into a free slot; from then on routes may name it.

        `tensors` by the names of `adapter.safetensors`; those of the head, `head.*`, are copied into `head`.
        `sites`: where it may act, all sites of the base unless given (`Sites.of_body`). Raises
        BankFull where no slot is free, and DeltatuneError for a name that is taken, a method that no bank can hold,
        and tensors that are missing, extra or misshapen, before anything has changed.
        """
        check_name(name, self.adapters)
        shape = self.shape_of(method, sites)
        if shape.key is None:
            raise DeltatuneError(f"{method!r} has no form for banks; attach it: host.load(...) or host.attach(...)")
        of_head = (
            {} if head is None else {f"head.{key}": tuple(tensor.shape) for key, tensor in head.state_dict().items()}
        )
        raise_all(mismatches({**shape.shapes, **of_head}, tensors), f"adapter {name!r} does not fit into the bank:")
        if len(self.places) >= self.slots:
            raise BankFull(
                f"all {self.slots} slots of the bank are taken, so that {name!r} finds none; remove an adapter, or "
                "make the bank larger: host.bank(slots=...)"
            )
        if shape.reads_base and self.host.merged:
            raise DeltatuneError(
                f"{method!r} is fitted to the base's own weights, and {', '.join(self.host.merged)} is merged into "
                "them; call unmerge_ first"
            )
        adapter = BankedAdapter(method, head, extra or {}, shape)
        adapter.seed, adapter.entry_bytes = seed, self.dtype.itemsize
        at_rest = self.host.using(None) if shape.reads_base else nullcontext()
        with at_rest, torch.inference_mode(False), torch.no_grad():
            if head is not None:
                adapter.load_tensors(tensors)
                head.to(self._like.device)
            values = {**tensors, **shared_tensors(shape, tensors, seed)}
            group = self._group_of(shape, values)
            adapter.slot = group.free_slot(self.slots)
            try:
                for key, delta in group.bank_deltas():
                    like = shape.adapter.deltas[key.replace(".", "/")]
                    assert isinstance(like, Delta)
                    delta.write_(adapter.slot, like, shape.of_delta(key, values))
            except BaseException:
                self._clear_(group, adapter.slot)
                raise
        adapter.requires_grad_(False).train(self.model.training)
        group.members[name] = adapter.slot
        self.places[name] = (group.name, adapter.slot)
        self.adapters[name] = adapter
        adapter_module(self.model)[name] = adapter
        return adapter

    def remove(self, name: str) -> None:
        """Take an adapter out; its slot is free at once. Raises DeltatuneError for a name that is not in it."""
        if name not in self.places:
            raise DeltatuneError(f"no adapter of the bank is called {name!r}{nearest(name, self.places)}")
        self.release(name)
        group_name, slot = self.places.pop(name)
        group = self.groups[group_name]
        del group.members[name]
        self._clear_(group, slot)

    def _clear_(self, group: BankGroup, slot: int) -> None:
        """Make a slot change nothing; a group without adapters goes."""
        if group.members:
            with torch.inference_mode(False), torch.no_grad():
                for _, delta in group.bank_deltas():
                    delta.clear_(slot)
            return
        self.hooks.unplug(group.name)
        del self.groups[group.name]
        adapter_module(self.model).pop(group.name)
        if not self.adapters:
            drop_module_(self.model)

    def shape_of(self, method: Method, sites: Sites | None = None) -> AdapterShape:
        """What adapters of a method that act at `sites` (all sites of the base unless given) have in common; found
        once."""
        places = self.sites if sites is None else sites
        known = method, places.body
        if known not in self._shapes:
            self._shapes[known] = adapter_shape(method, places, self.model)
        return self._shapes[known]

    def _group_of(self, shape: AdapterShape, values: Mapping[str, Tensor]) -> BankGroup:
        """The group that an adapter with these tensors shares, made where there is none."""
        for group in self.groups.values():
            if group.key == shape.key and all(
                delta.takes(shape.of_delta(key, values)) for key, delta in group.bank_deltas()
            ):
                return group
        self._made += 1
        group = BankGroup(f"bank:{self._made}", shape.adapter.method, shape, self.slots, self.dtype)
        group.to(self._like.device)
        group.train(self.model.training)
        self.groups[group.name] = group
        adapter_module(self.model)[group.name] = group
        self.hooks.plug(group.name, group)
        return group


def check_name(name: str, adapters: Mapping[str, Adapter]) -> None:
    """Raise DeltatuneError for a name that is taken or that no adapter may have."""
    if name in adapters:
        raise DeltatuneError(f"an adapter called {name!r} is attached already; detach it or choose another name")
    if not name or not name.replace("-", "_").isidentifier():
        raise DeltatuneError(f"{name!r} is not a name for an adapter; use letters, digits, _ and -")
