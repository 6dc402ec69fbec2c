"""The attention seam: one function in transformers' AttentionInterface through which key-value prefixes enter.

It is called after RoPE and after the cache update, for self and cross attention of every family that dispatches
through the interface. The prefix never enters the cache, so gradient checkpointing and beam search cannot lose it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from deltatune.core.delta import Delta
from deltatune.core.errors import DeltatuneError
from deltatune.core.mixing import Share, spread

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
        plain = _plain(inner, module)
        port = getattr(module, PORT, None)
        active: Sequence[tuple[Delta, Share]] = (
            port.shares(q.shape[0], q.device) if port is not None and port.active else ()
        )
        if not active:
            return plain(module, q, k, v, mask, **options)
        if len(active) == 1 and active[0][1] == Share(None, 1.0):
            return _extended(plain, active[0][0], module, q, k, v, mask, options)
        return _mixed(plain, active, module, q, k, v, mask, options), None

    return attention


def _plain(inner: str, module: nn.Module) -> Callable[..., Any]:
    if inner == "eager":  # each modelling file has its own
        return sys.modules[type(module).__module__].eager_attention_forward  # type: ignore[no-any-return]
    return ALL_ATTENTION_FUNCTIONS[inner]  # type: ignore[no-any-return]


def _extended(
    plain: Callable[..., Any],
    delta: Delta,
    module: nn.Module,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    options: Any,
) -> Any:
    """Attention over the Delta's keys and values in front of the real ones: q (B, H, T, K), k and v (B, H_kv, S, K)."""
    keys, values = delta(k, v)  # (B, H_kv, P + S, K)
    length = keys.shape[2] - k.shape[2]
    if mask is None and getattr(module, "is_causal", False) and q.shape[2] > 1:
        raise DeltatuneError(
            "a causal model reached attention without a mask; key-value prefixes cannot be placed safely"
        )
    if mask is not None:
        mask = F.pad(mask, (length, 0), value=mask.dtype == torch.bool)  # True attends; additive masks add 0
    if options.get("position_bias") is not None:  # T5: no bias towards the prefix
        options = {**options, "position_bias": F.pad(options["position_bias"], (length, 0))}
    return plain(module, q, keys, values, mask, **options)


def _mixed(
    plain: Callable[..., Any], active: Sequence[tuple[Delta, Share]], module: nn.Module, q: Tensor, k: Tensor,
    v: Tensor, mask: Tensor | None, options: Any,
) -> Tensor:  # fmt: skip
    """`a + sum_i w_i * (a_i - a)` row by row, `a_i` being attention with adapter i's prefix. Returns (B, T, H, K)."""
    a: Tensor = plain(module, q, k, v, mask, **options)[0]
    out = a
    for delta, (rows, weight) in active:
        pick = _picker(rows, q.shape[0])
        bias = options.get("position_bias")
        mine = {**options, "position_bias": pick(bias)} if bias is not None else options
        changed = _extended(
            plain, delta, module, pick(q), pick(k), pick(v), None if mask is None else pick(mask), mine
        )[0]
        change = spread(weight, changed) * (changed - pick(a))
        out = out + change if rows is None else out.index_add(0, rows, change)
    return out


def _picker(rows: Tensor | None, batch: int) -> Callable[[Tensor], Tensor]:
    return lambda t: t if rows is None or t.shape[0] != batch else t.index_select(0, rows)
