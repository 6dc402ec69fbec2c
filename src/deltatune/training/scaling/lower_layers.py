"""Lower layers: the blocks below the lowest site of an adapter, whose outputs never change while it trains.

They run in evaluation mode and without gradients, apart from the blocks above, which go on from their states. So the
states of a row can be kept for the next epoch, the next learning rate, seed or method, and nothing depends on whether
they were.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from deltatune.core.capabilities import Needs
from deltatune.core.host import Host
from deltatune.core.method import Method
from deltatune.core.sites.blocks import body, find_blocks, input_embeddings
from deltatune.core.sites.site import Site, Sites
from deltatune.training.inference.batches import device_of
from deltatune.training.scaling.block_bypass import BlockBypass
from deltatune.training.scaling.feature_cache import CACHE, inputs_of
from deltatune.training.scaling.row_states import RepeatedRows, RowStates, grouped_rows, open_states
from deltatune.training.scaling.sharding import is_sharded

LOWER_LAYERS_VERSION = 1
"""Version of the training of adapters with nothing in the first blocks: before, those blocks had dropout."""


@dataclass(frozen=True)
class LowerBlocks:
    """The blocks that no active adapter changes, nor anything before them."""

    entry: nn.Module
    """The module whose forward runs them: the body of the model, or the encoder of an encoder-decoder."""
    blocks: tuple[nn.Module, ...]
    """From the first one up."""
    outside: tuple[nn.Module, ...] = ()
    """Modules of `entry` beside its blocks that an adapter changes; they must run after the lower blocks."""


def find_lower_blocks(host: Host) -> LowerBlocks | None:
    """The lower blocks under the current route; None where an adapter changes the first block or what is before it.

    Of an encoder-decoder they are the encoder's: the decoder reads what all of the encoder makes.
    """
    needs = [host.adapters[name].needs for name in host.route.names]
    if host.merged or is_sharded(host.model) or not needs or any(map(_changes_input, needs)):
        return None
    model, encoder = host.model, host.sites.facts.encoder_decoder
    skips = any(getattr(model.config, name, 0.0) for name in ("layerdrop", "encoder_layerdrop"))
    if skips or (encoder and not hasattr(model, "get_encoder")):
        return None
    entry: nn.Module = model.get_encoder() if encoder else body(model)  # type: ignore[operator]
    inside = {id(module) for path, module in entry.named_modules() if path.partition(".")[0] != "deltatune"}
    stack = [(block.index, model.get_submodule(block.path)) for block in find_blocks(model)]
    stack = [(index, module) for index, module in stack if id(module) in inside]
    if not stack or [index for index, _ in stack] != list(range(len(stack))):  # several stacks, one after the other
        return None
    blocks = tuple(module for _, module in stack)
    owners: dict[int, int] = {}
    for i, block in enumerate(blocks):
        for module in block.modules():
            owners.setdefault(id(module), i)
    lowest, outside, trained = len(blocks), [], set()
    for site in _active_sites(host):
        module = model.get_submodule(site.module)
        if site.kind == "embed" or module is input_embeddings(model):
            return None
        if site.kind == "weight":
            trained.add(id(module._parameters[site.attribute]))
        if id(module) in owners:
            lowest = min(lowest, owners[id(module)])
        elif id(module) in inside:
            outside.append(module)
    upper = {id(module) for block in blocks[lowest:] for module in block.modules()} | set(map(id, outside))
    fixed = [module for module in entry.modules() if id(module) in inside - upper]
    if not lowest or any(id(p) in trained for module in fixed for p in module._parameters.values()):  # or tied to them
        return None
    return LowerBlocks(entry, blocks[:lowest], tuple(dict.fromkeys(outside)))


def spares_first_block(method: Method, sites: Sites) -> bool:
    """Whether a method changes only blocks above the first, so that its trainings have `LOWER_LAYERS_VERSION`."""
    picked = [site for part in method.parts for site in part.pick(sites)]
    return bool(picked) and all(site.layer or site.name.startswith("decoder.") for site in picked)


def _changes_input(needs: Needs) -> bool:
    """Whether an adapter changes what the first block reads, or needs to see the whole pass."""
    return bool(
        needs.virtual_tokens
        or needs.position_shift
        or needs.answer_shift
        or needs.interpolation
        or needs.answer_offsets
        or needs.prompt_ids
    )


def _active_sites(host: Host) -> Iterator[Site]:
    for name in host.route.names:
        adapter = host.adapters[name]
        yield from (site for site in adapter.sites.values() if site.kind == "weight" or adapter.acts_at(site))


class LowerPass:
    """Parts each forward of a model under one route: the lower blocks, or their kept states, then the rest."""

    def __init__(self, host: Host, lower: LowerBlocks, repeated: RepeatedRows | None, always: bool) -> None:
        """`always`: the lower blocks run apart even if no states are kept, as in training."""
        self.host, self.lower, self.repeated, self.always = host, lower, repeated, always
        self.bypass = BlockBypass(lower.entry, lower.blocks)
        self.route = host.route
        self.table: RowStates | None = None
        self.prepared = False
        self.parting = False
        """Whether a forward is being prepared: those within it are left alone."""
        self._names = list(signature(lower.entry.forward).parameters)
        self._handle: Any = None

    def install(self) -> None:
        """Take part in every forward of the model."""
        self._handle = self.lower.entry.register_forward_pre_hook(self._before, with_kwargs=True, prepend=True)
        self.bypass.install()

    def remove(self) -> None:
        """Leave the model as it was."""
        self._handle.remove()
        self.bypass.remove()

    def close(self) -> None:
        """Let others have the room of the kept states."""
        if self.table is not None:
            self.table.users -= 1
            self.table = None

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pre-hook of the entry."""
        if self.parting:
            return
        self.bypass.states, self.bypass.extras = None, ()
        inputs = {**dict(zip(self._names, args, strict=False)), **kwargs}
        if self.host.route is not self.route or inputs.get("past_key_values") is not None:
            return
        self.parting = True
        try:
            self._prepare_(inputs)
            if self.bypass.support.works:
                states = self._kept(inputs)
                self.bypass.states = self.bypass.run(inputs) if states is None and self.always else states
        finally:
            self.parting = False

    def _prepare_(self, inputs: Mapping[str, Any]) -> None:
        """Learn from the first batch whether this model's lower blocks can be left out, and open the kept states."""
        if self.prepared:
            return
        self.prepared = True
        device, repeated = device_of(self.host), self.repeated
        autocast = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
        rows = None if repeated is None else grouped_rows(repeated, device)
        key = "" if rows is None else rows.key(self.host, (len(self.lower.blocks), str(autocast)))
        if repeated is not None and not repeated.certain and rows is not None and not CACHE.read_before(key):
            rows = None
        if rows is None and not self.always:
            return
        support = self.bypass.check_(inputs, self.lower.outside)
        if rows is None or not support.works or not support.right or (rows.padded_left and not support.left):
            return
        self.table = open_states(key, rows, support.width * support.dtype.itemsize)
        if self.table is not None:
            self.table.users += 1

    def _kept(self, inputs: Mapping[str, Any]) -> Tensor | None:
        """The kept states of a batch (B, T, D), if all of its rows are kept ones and it says nothing more of them."""
        if self.table is None:
            return None
        read = inputs_of(inputs)
        further = {name: value for name, value in inputs.items() if name not in read}
        if "input_ids" not in read or "attention_mask" not in read:
            return None
        if any(isinstance(value, Tensor) for value in further.values()):
            return None
        return self.table.gather(read, lambda group: self.bypass.run({**further, **group}))


_passes: WeakKeyDictionary[nn.Module, LowerPass] = WeakKeyDictionary()
"""The pass that is installed on each model."""


@contextmanager
def lower_layers(host: Host, repeated: RepeatedRows | None = None, always: bool = False) -> Iterator[LowerPass | None]:
    """Within this context the lower blocks of the active adapters run apart from the rest, and are kept for `repeated`.

    `always`: they run apart even where nothing is kept, so that keeping changes nothing in training. A context within
    this one has the model to itself. Models whose blocks cannot be left out run as they are.
    """
    outer = _passes.pop(host.model, None)
    repeated = repeated if CACHE.limit_on(device_of(host)) else None
    lower = find_lower_blocks(host) if always or repeated is not None else None
    inner = None if lower is None else LowerPass(host, lower, repeated, always)
    if outer is not None:
        outer.remove()
    if inner is not None:
        inner.install()
        _passes[host.model] = inner
    try:
        yield inner
    finally:
        if inner is not None:
            inner.remove()
            inner.close()
            del _passes[host.model]
        if outer is not None:
            outer.install()
            _passes[host.model] = outer
