"""The attention seam: one function in transformers' AttentionInterface through which key-value prefixes enter.

It is called after RoPE and after the cache update, for self and cross attention of every family that dispatches
through the interface. The prefix never enters the cache, so gradient checkpointing and beam search cannot lose it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from deltatune.core.attending import Attention
from deltatune.core.errors import DeltatuneError
from deltatune.core.mixing import Share, spread
from deltatune.core.ports import Acting

PORT = "_deltatune_port"
"""Attribute of an attention module under which the Host leaves its port (a plain object, not in the state dict)."""
_INNER = ("sdpa", "eager")


def inner_attention(model: nn.Module) -> str:
    """The attention that the model runs, or would run were the seam not open.

    Raises DeltatuneError for implementations without a dense mask (flash attention, flex attention).
    """
    config: Any = model.config
    inner = str(config._attn_implementation).removeprefix("deltatune_")
    if inner not in _INNER:
        raise DeltatuneError(
            f"key-value prefixes need attention 'sdpa' or 'eager', this model runs {inner!r}; "
            "load it with attn_implementation='sdpa'"
        )
    return inner


class AttentionSeam:
    """Routes the model's attention through the seam while a prefix acts, and gives the model its own back after."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.inner: str | None = None
        """The attention that the open seam calls; None while it is closed."""
        model.register_forward_pre_hook(self.check)

    def arrange(self, wanted: bool) -> None:
        """Open or close the seam."""
        if wanted and self.inner is None:
            self.inner = inner_attention(self.model)
            name = f"deltatune_{self.inner}"
            AttentionInterface.register(name, _function(self.inner))
            # A name without a mask function silently gets no mask at all, and padding would be attended.
            AttentionMaskInterface.register(name, _mask(self.inner))
            self._set(name)
        elif not wanted and self.inner is not None:
            self._set(self.inner)
            self.inner = None

    def check(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Pre-hook of the model. Raises DeltatuneError if the attention was changed under an acting prefix."""
        config: Any = self.model.config
        if self.inner is not None and config._attn_implementation != f"deltatune_{self.inner}":
            raise DeltatuneError(
                f"the model's attention was set to {config._attn_implementation!r} while a key-value prefix acts, "
                "which would drop the prefix; call host.use(None), set the attention, then host.use(...) again"
            )

    def _set(self, name: str) -> None:
        self.model.set_attn_implementation(name)  # type: ignore[operator]


def _mask(inner: str) -> Callable[..., Any]:
    make = ALL_MASK_ATTENTION_FUNCTIONS[inner]

    def mask(*args: Any, **kwargs: Any) -> Any:
        kwargs["allow_is_causal_skip"] = False  # SDPA's own causal flag is wrong once there are more keys than queries
        return make(*args, **kwargs)

    return mask


def _function(inner: str) -> Callable[..., Any]:
    def attention(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **options: Any) -> Any:
        call = Attention(_plain(inner, module), module, q, k, v, mask, options)
        port = getattr(module, PORT, None)
        active: Sequence[Acting] = port.acting(q.shape[0], q.device) if port is not None and port.active else ()
        if not active:
            return call.run()
        if len(active) == 1 and active[0].share == Share(None, 1.0):
            return _attend(call, active[0])
        return _mixed(call, active), None

    return attention


def _plain(inner: str, module: nn.Module) -> Callable[..., Any]:
    if inner == "eager":  # each modelling file has its own
        return sys.modules[type(module).__module__].eager_attention_forward  # type: ignore[no-any-return]
    return ALL_ATTENTION_FUNCTIONS[inner]  # type: ignore[no-any-return]


def _attend(call: Attention, acting: Acting) -> Any:
    """Attention as one Delta has it, for its rows."""
    delta, share, x = acting
    return delta(replace(call, x=x).rows(share.rows))


def _mixed(call: Attention, active: Sequence[Acting]) -> Tensor:
    """`a + sum_i w_i * (a_i - a)` row by row, `a_i` being attention as adapter i has it. Returns (B, T, H, K)."""
    a: Tensor = call.run()[0]
    out = a
    for acting in active:
        rows, weight = acting.share
        changed = _attend(call, acting)[0]
        there = a if rows is None else a.index_select(0, rows)
        change = spread(weight, changed) * (changed - there)
        out = out + change if rows is None else out.index_add(0, rows, change)
    return out
