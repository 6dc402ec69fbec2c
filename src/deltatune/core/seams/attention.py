"""The attention seam: one function in transformers' AttentionInterface through which key-value prefixes enter.

It is called after RoPE and after the cache update, for self and cross attention of every family that dispatches
through the interface. The prefix never enters the cache, so gradient checkpointing and beam search cannot lose it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from deltatune.core.delta import Delta
from deltatune.core.errors import DeltatuneError
from deltatune.core.route import Share, spread
from deltatune.core.seams.attention_call import Attention
from deltatune.core.seams.hook_points import Acting
from deltatune.core.sites.site import Site

PORT = "_deltatune_port"
"""Attribute of an attention module under which the Host leaves its port (a plain object, not in the state dict)."""
_INNER = ("sdpa", "eager")


def inner_attention(model: nn.Module) -> str:
    """The attention that the model runs, or would run were the seam not open.

    Raises DeltatuneError for implementations without a dense mask (flash attention, flex attention).
    """
    config: Any = model.config
    inner = str(config._attn_implementation).removeprefix("deltatune_").removesuffix("_as_long")
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
        self.name: str | None = None
        """The name under which the open seam is registered."""
        model.register_forward_pre_hook(self.check)

    def arrange(self, wanted: bool, longer: bool = True) -> None:
        """Open or close the seam; `longer`: what acts puts keys in front of the model's own."""
        if not wanted:
            if self.inner is not None:
                self._set(self.inner)
            self.inner, self.name = None, None
            return
        self.inner = inner_attention(self.model)
        name = _registered(self.inner, longer)
        if name != self.name:
            self.name = name
            self._set(name)

    def check(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Pre-hook of the model. Raises DeltatuneError if the attention was changed under an acting prefix."""
        config: Any = self.model.config
        if self.name is not None and config._attn_implementation != self.name:
            raise DeltatuneError(
                f"the model's attention was set to {config._attn_implementation!r} while a key-value prefix acts, "
                "which would drop the prefix; call host.use(None), set the attention, then host.use(...) again"
            )

    def _set(self, name: str) -> None:
        self.model.set_attn_implementation(name)  # type: ignore[operator]


def _registered(inner: str, longer: bool) -> str:
    """Name of the seam over an attention. With keys as long as the model's own, its own masks are right."""
    name = f"deltatune_{inner}" if longer else f"deltatune_{inner}_as_long"
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


# ---- what the base itself attends to


def start_from_words_(model: nn.Module, deltas: Sequence[tuple[Site, Delta]]) -> None:
    """Hand every Delta with `words` the keys and values that the model, on which nothing may act, has for them."""
    for words in dict.fromkeys(delta.words for _, delta in deltas if delta.words):
        mine = [(site, delta) for site, delta in deltas if delta.words == words]
        seen = keys_and_values(model, words, [site.module for site, _ in mine])
        for site, delta in mine:
            delta.start_(*seen[site.module])


class _Seen:
    """In place of a port: notes the keys and values (P, H_kv·K) of an attention's first call, its last P of them."""

    active = True

    def __init__(self, length: int) -> None:
        self.length = length
        self.found: tuple[Tensor, Tensor] | None = None

    def acting(self, batch: int, device: torch.device) -> Sequence[Acting]:
        """Itself, for all rows."""
        return [Acting(self, Share(None, 1.0), None)]  # type: ignore[arg-type]  # called as a Delta is

    def __call__(self, call: Attention) -> Any:
        if self.found is None:
            keys, values = (t[0].transpose(0, 1)[-self.length :].flatten(1) for t in (call.k, call.v))
            self.found = keys.clone(), values.clone()
        return call.run()


@torch.no_grad()
def keys_and_values(
    model: nn.Module, words: Sequence[int], attentions: Sequence[str]
) -> dict[str, tuple[Tensor, Tensor]]:
    """What each of the attentions (module paths) attends to when the model reads the words: P keys and values.

    Decoders behind an encoder read them too, behind their start token; cross attention attends to the encoder's.
    """
    body: Any = getattr(model, "base_model", model)  # the model without its head, which may want more than words
    ids = _readable(body, words)
    seen = {path: _Seen(len(words)) for path in attentions}
    with _evaluating(model), _watched(model, seen):
        if body.config.is_encoder_decoder:
            start = body.config.decoder_start_token_id
            behind = ids if start is None else torch.cat([torch.full_like(ids[:, :1], start), ids], 1)
            body(input_ids=ids, attention_mask=torch.ones_like(ids), decoder_input_ids=behind)
        else:
            body(input_ids=ids, attention_mask=torch.ones_like(ids))
    found = {path: there.found for path, there in seen.items() if there.found is not None}
    missed = sorted(seen.keys() - found.keys())
    if missed:
        raise DeltatuneError(f"{type(model).__name__} does not reach {missed[0]} when it reads words; leave them out")
    return found


def _readable(body: Any, words: Sequence[int]) -> Tensor:
    """Ids (1, P) on the model's device."""
    if body.main_input_name != "input_ids":
        raise DeltatuneError(
            f"{type(body).__name__} reads {body.main_input_name}, so that words have no keys and values in it; leave "
            "words and ids out"
        )
    table: Tensor = body.get_input_embeddings().weight
    beyond = [word for word in words if not 0 <= word < len(table)]
    if beyond:
        raise DeltatuneError(
            f"{beyond[0]} is no token id of this {type(body).__name__}, which has 0 to {len(table) - 1}"
        )
    return torch.tensor([list(words)], device=table.device)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def _watched(model: Any, seen: dict[str, _Seen]) -> Iterator[None]:
    """The seam open, with what notes in place of each port."""
    before, modules = model.config._attn_implementation, {path: model.get_submodule(path) for path in seen}
    ports = {path: getattr(module, PORT, None) for path, module in modules.items()}
    model.set_attn_implementation(_registered(inner_attention(model), True))
    try:
        for path, module in modules.items():
            setattr(module, PORT, seen[path])
        yield
    finally:
        for path, module in modules.items():
            delattr(module, PORT) if ports[path] is None else setattr(module, PORT, ports[path])
        model.set_attn_implementation(before)
