"""Bypass of a model's first blocks: they run alone, and later forwards go on from the states that they made.

Embeddings, masks and positions stay the model's own; only the blocks are left out of its forward. Whether a model
allows that is tried on its first rows, never assumed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from deltatune.core.errors import is_out_of_memory

TOLERANCE, TOLERANCE_HALF = 1e-4, 2e-2
"""Largest difference that is rounding, relative to the largest value, in float32 and below."""
ROWS, TOKENS, PADDING = 2, 16, 8
"""Rows that are compared; tokens of a row, and padding tokens beside it, with which padding is tried."""


@dataclass(frozen=True)
class Support:
    """What leaving out the first blocks of a model does."""

    works: bool = False
    """The blocks run once each, in order, and the rest makes the same of their states alone."""
    is_tuple: bool = False
    """Whether a block returns its states within a tuple."""
    further: int = 0
    """What else is in it."""
    extras: bool = False
    """Whether it returns more than its states, which the first block makes for all (T5's position bias)."""
    width: int = 0
    """D of the states."""
    dtype: torch.dtype = torch.float32
    left: bool = False
    """Whether padding on the left leaves a row's states as they are; not where positions count it."""
    right: bool = False
    """Whether padding on the right does."""


class Reached(Exception):  # no error: it ends a pass that is run for the first blocks alone
    """The output of the last of the first blocks."""

    def __init__(self, output: Any) -> None:
        super().__init__("the first blocks are done")
        self.states: Tensor = output if isinstance(output, Tensor) else output[0]


class BlockBypass:
    """The first blocks of a module, whose forwards can be left out."""

    def __init__(self, entry: nn.Module, blocks: Sequence[nn.Module]) -> None:
        """`entry`: the module whose forward runs them."""
        self.entry, self.blocks = entry, blocks
        self.support = Support()
        self.states: Tensor | None = None
        """States that the next forward goes on from; None while the blocks run themselves."""
        self.alone = False
        """Whether a pass of the first blocks alone is under way."""
        self.extras: tuple[Any, ...] = ()
        self._own: list[Any] = []

    def install(self) -> None:
        """Take the places of the blocks' forwards."""
        self._own = [vars(block).get("forward") for block in self.blocks]
        for i, block in enumerate(self.blocks):
            block.forward = self._forward_of(i, block.forward)

    def remove(self) -> None:
        """Give the blocks their own forwards back."""
        for block, own in zip(self.blocks, self._own, strict=True):
            vars(block).pop("forward", None)
            if own is not None:  # another library's
                block.forward = own
        self.states, self.extras = None, ()

    def _forward_of(self, i: int, own: Callable[..., Any]) -> Callable[..., Any]:
        last = len(self.blocks) - 1

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self.states is None:
                output = own(*args, **kwargs)
                if self.alone and i == last:
                    raise Reached(output)
                return output
            states = args[0] if args else kwargs["hidden_states"]
            if self.support.extras and i == 0:
                with torch.no_grad():
                    self.extras = own(*args, **kwargs)[1:]
            if i == last:
                states, self.states = self.states, None
            further = self.extras or (None,) * self.support.further
            return (states, *further) if self.support.is_tuple else states

        return forward

    def run(self, inputs: Mapping[str, Any]) -> Tensor:
        """States (B, T, D) that the first blocks make of a batch, in evaluation mode and without gradients."""
        inference = torch.is_inference_mode_enabled()
        plain = torch.inference_mode(False) if inference else nullcontext()  # a training may read them later
        with evaluating(self.entry), plain, torch.no_grad():
            copied = {n: v.clone() if inference and isinstance(v, Tensor) else v for n, v in inputs.items()}
            self.states, self.alone = None, True
            try:
                self.entry(**copied)
            except Reached as reached:
                return reached.states
            finally:
                self.alone = False
        raise AssertionError("the first blocks did not run")  # `check_` has seen them run

    # --- the check

    def check_(self, inputs: Mapping[str, Any], later: Sequence[nn.Module]) -> Support:
        """Try it on the first rows of a batch and set `support`; what was found is remembered for the module.

        `later`: modules that must run after the blocks, for their outputs change.
        """
        autocast = any(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda"))
        attention = getattr(getattr(self.entry, "config", None), "_attn_implementation", None)
        key = (len(self.blocks), autocast, attention, tuple(map(id, later)))
        known = _known.setdefault(self.entry, {})
        if key not in known:
            try:
                known[key] = self._tried(inputs, later)
            except Exception as error:  # a model whose upper blocks read something else of the lower ones
                if is_out_of_memory(error):
                    raise
                known[key] = Support()
            finally:
                self.states, self.extras = None, ()
        self.support = known[key]
        return self.support

    @torch.no_grad()
    def _tried(self, inputs: Mapping[str, Any], later: Sequence[nn.Module]) -> Support:
        batch = next(len(value) for value in inputs.values() if isinstance(value, Tensor))
        sample = {
            name: value[:ROWS] if isinstance(value, Tensor) and value.dim() and len(value) == batch else value
            for name, value in inputs.items()
        }
        with evaluating(self.entry):
            order, output, whole = self._traced(sample, later)
        expected = list(range(len(self.blocks)))
        if order[: len(expected)] != expected or set(order[len(expected) :]) & set(expected):
            return Support()
        is_tuple = not isinstance(output, Tensor)
        extras = is_tuple and any(value is not None for value in output[1:])
        states = self.run(sample)
        if (extras and len(self.blocks) < 2) or states.dim() != 3:
            return Support()
        further = len(output) - 1 if is_tuple else 0
        self.support = Support(True, is_tuple, further, extras, states.shape[-1], states.dtype)
        with evaluating(self.entry):
            self.states = states
            parted = _first(self.entry(**sample))
        if self.states is not None or not _close(parted, whole):
            return Support()
        left, right = (self._ignores_padding(sample, side) for side in ("left", "right"))
        return replace(self.support, left=left, right=right)

    def _traced(self, sample: Mapping[str, Any], later: Sequence[nn.Module]) -> tuple[list[int], Any, Tensor]:
        """A pass: the order in which blocks end and later modules (-1) start, the last block's output, its own."""
        order: list[int] = []
        outputs: list[Any] = []
        handles = [module.register_forward_pre_hook(lambda *_: order.append(-1)) for module in later]
        for i, block in enumerate(self.blocks):
            handles.append(block.register_forward_hook(lambda *_, i=i: order.append(i)))
        handles.append(self.blocks[-1].register_forward_hook(lambda module, args, output: outputs.append(output)))
        try:
            whole = _first(self.entry(**sample))
        finally:
            for handle in handles:
                handle.remove()
        return order, outputs[-1], whole

    def _ignores_padding(self, sample: Mapping[str, Any], side: str) -> bool:
        """Whether the states of a row's tokens are the same with padding on one side."""
        ids, mask = sample.get("input_ids"), sample.get("attention_mask")
        if ids is None or mask is None or mask.dim() != 2 or mask.shape != ids.shape:
            return False
        config: Any = getattr(self.entry, "config", None)
        most = getattr(config, "max_position_embeddings", None) or TOKENS + PADDING
        real = mask[0] != 0
        read = {name: sample[name] for name in ("input_ids", "token_type_ids") if isinstance(sample.get(name), Tensor)}
        row = {name: value[:1][:, real][:, : max(1, min(TOKENS, most - PADDING))] for name, value in read.items()}
        row["attention_mask"] = torch.ones_like(row["input_ids"])
        others = {name: value for name, value in sample.items() if not isinstance(value, Tensor)}
        fill = {"input_ids": getattr(config, "pad_token_id", None) or 0, "token_type_ids": 0, "attention_mask": 0}
        beside = (PADDING, 0) if side == "left" else (0, PADDING)
        padded = {name: nn.functional.pad(value, beside, value=fill[name]) for name, value in row.items()}
        length = row["input_ids"].shape[1]
        states = self.run({**others, **padded})
        states = states[:, -length:] if side == "left" else states[:, :length]
        return _close(states, self.run({**others, **row}))


_known: WeakKeyDictionary[nn.Module, dict[object, Support]] = WeakKeyDictionary()


def _first(outputs: Any) -> Tensor:
    """The first tensor of a module's outputs."""
    tensor: Tensor = outputs if isinstance(outputs, Tensor) else outputs[0]
    return tensor


def _close(one: Tensor, other: Tensor) -> bool:
    full = one.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(one.device.type)
    most = (TOLERANCE if full else TOLERANCE_HALF) * float(other.abs().max())
    return one.shape == other.shape and float((one - other).abs().max()) <= most


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Within this context a module and all in it are in evaluation mode."""
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True
