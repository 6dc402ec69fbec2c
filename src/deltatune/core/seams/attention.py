"""The attention seam: one function in transformers' AttentionInterface through which key-value prefixes enter.

It is called after RoPE and after the cache update, for self and cross attention of every family that dispatches
through the interface. The prefix never enters the cache, so gradient checkpointing and beam search cannot lose it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from deltatune.core.attention_call import AttentionCall
from deltatune.core.errors import DeltatuneError
from deltatune.core.route import per_row
from deltatune.core.seams.hook_points import ActiveDelta
from deltatune.core.sites.fused_projections import reaches_attention

HOOK_POINT = "_deltatune_hook_point"
"""Attribute of an attention module that holds its hook point (a plain object, not in the state dict)."""
_INNER = ("sdpa", "eager")


def inner_attention(model: nn.Module) -> str:
    """The attention that the model runs, or would run were the seam not open.

    Raises DeltatuneError for implementations without a dense mask (flash attention, flex attention).
    """
    config: Any = model.config
    inner = str(config._attn_implementation).removeprefix("deltatune_").removesuffix("_same_length")
    if inner not in _INNER:
        raise DeltatuneError(
            f"key-value prefixes need attention 'sdpa' or 'eager', this model runs {inner!r}; "
            "load it with attn_implementation='sdpa'"
        )
    return inner


class AttentionSeam:
    """Routes the model's attention through the seam while a prefix acts, and restores the model's own afterwards."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.inner: str | None = None
        """The attention that the open seam calls; None while it is closed."""
        self.name: str | None = None
        """The name under which the open seam is registered."""
        model.register_forward_pre_hook(self.check)

    def follow(self, wanted: bool, longer: bool = True) -> None:
        """Open or close the seam; `longer`: an active Delta puts keys in front of the model's own."""
        if not wanted:
            if self.inner is not None:
                self._set(self.inner)
            self.inner, self.name = None, None
            return
        self.inner = inner_attention(self.model)
        name = register_seam(self.inner, longer)
        if name != self.name:
            self.name = name
            self._set(name)

    def check(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Pre-hook of the model. Raises DeltatuneError if the attention was changed while a prefix is active."""
        config: Any = self.model.config
        if self.name is not None and config._attn_implementation != self.name:
            raise DeltatuneError(
                f"the model's attention was set to {config._attn_implementation!r} while a key-value prefix is "
                "active, which would drop the prefix; call host.use(None), set the attention, then host.use(...) again"
            )

    def _set(self, name: str) -> None:
        set_attention_(self.model, name)


def set_attention_(model: nn.Module, name: str) -> None:
    """Set the attention of a whole model, also of parts with a copy of its config.

    transformers before 5.20 leaves such parts, as the encoder and the decoder of a T5, as they were.
    """
    whole: Any = model
    whole.set_attn_implementation(name)
    for part in model.modules():
        config: Any = getattr(part, "config", None)
        if config is not whole.config and type(config) is type(whole.config) and reaches_attention(part):
            config._attn_implementation = name


def register_seam(inner: str, longer: bool) -> str:
    """Register the seam over an attention and return its name. Without longer keys, the model's own masks are right."""
    name = f"deltatune_{inner}" if longer else f"deltatune_{inner}_same_length"
    AttentionInterface.register(name, _function(inner))
    # A name without a mask function silently gets no mask at all, and padding would be attended.
    AttentionMaskInterface.register(name, _mask(inner) if longer else ALL_MASK_ATTENTION_FUNCTIONS[inner])
    return name


def _mask(inner: str) -> Callable[..., Any]:
    make = ALL_MASK_ATTENTION_FUNCTIONS[inner]

    def mask(*args: Any, **kwargs: Any) -> Any:
        kwargs["allow_is_causal_skip"] = False  # SDPA's own causal flag is wrong once there are more keys than queries
        return make(*args, **kwargs)

    return mask


def _function(inner: str) -> Callable[..., Any]:
    def attention(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **options: Any) -> Any:
        call = AttentionCall(_plain(inner, module), module, q, k, v, mask, options)
        point = getattr(module, HOOK_POINT, None)
        active: Sequence[ActiveDelta] = ()
        if point is not None and point.active:
            active = point.active_deltas(q.shape[0], q.device)
        if not active:
            return call.run()
        if len(active) == 1 and active[0].acting.whole:
            return _attend(call, active[0])
        return (_side_by_side(call, active) if _apart(active) else _mixed(call, active)), None

    return attention


def _plain(inner: str, module: nn.Module) -> Callable[..., Any]:
    if inner == "eager":  # each modelling file has its own
        return sys.modules[type(module).__module__].eager_attention_forward  # type: ignore[no-any-return]
    return ALL_ATTENTION_FUNCTIONS[inner]  # type: ignore[no-any-return]


def _attend(call: AttentionCall, active: ActiveDelta) -> Any:
    """Attention with the change of one Delta, for its rows."""
    return active.delta(replace(call, x=active.x).rows(active.acting.rows))


def _apart(active: Sequence[ActiveDelta]) -> bool:
    """Whether every row takes the change of at most one Delta, as it is."""
    each = [one.acting for one in active]
    if any(acting.rows is None or isinstance(acting.weight, Tensor) or acting.weight != 1.0 for acting in each):
        return False
    numbers = [number for acting in each for number in acting.numbers]
    return len(set(numbers)) == len(numbers)


def _side_by_side(call: AttentionCall, active: Sequence[ActiveDelta]) -> Tensor:
    """Attention of which every Delta computes its own rows: (B, T, H, K)."""
    batch = len(call.q)
    parts = [_attend(call, each)[0] for each in active]
    rows = [each.acting.rows for each in active if each.acting.rows is not None]
    if sum(len(part) for part in parts) < batch:
        out: Tensor = call.run()[0]
    else:
        out = parts[0].new_empty(batch, *parts[0].shape[1:])
    return out.index_copy(0, torch.cat(rows), torch.cat(parts))


def _mixed(call: AttentionCall, active: Sequence[ActiveDelta]) -> Tensor:
    """`a + sum_i w_i * (a_i - a)` row by row, `a_i` being attention with adapter i. Returns (B, T, H, K)."""
    a: Tensor = call.run()[0]
    out = a
    for each in active:
        rows, weight, *_ = each.acting
        changed = _attend(call, each)[0]
        plain = a if rows is None else a.index_select(0, rows)
        change = per_row(weight, changed) * (changed - plain)
        out = out + change if rows is None else out.index_add(0, rows, change)
    return out
