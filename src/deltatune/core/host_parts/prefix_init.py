"""Initial values of prefixes: the keys and values that the bare model computes for given token ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from deltatune.core.adapter import Adapter
from deltatune.core.attention_call import AttentionCall
from deltatune.core.delta import AttentionDelta
from deltatune.core.errors import DeltatuneError
from deltatune.core.route import RowsAndWeight
from deltatune.core.seams.attention import HOOK_POINT, inner_attention, register_seam, set_attention_
from deltatune.core.seams.hook_points import ActiveDelta


def init_prefixes_(model: nn.Module, adapter: Adapter) -> None:
    """Pass every attention Delta with `initial_ids` the keys and values that the bare model computes for them.

    No adapter acts on the model meanwhile. Raises DeltatuneError if the adapter changes attention and the model's
    attention has no seam.
    """
    if any(site.kind == "kv" for site in adapter.sites.values()):
        inner_attention(model)  # refuse now, before anything is plugged in
    if any(parameter.is_meta for parameter in model.parameters()):
        return  # a model without weights, of which only shapes are asked
    pairs = [
        (site.module, part)
        for _, site, delta in adapter.entries()
        for part in delta.modules()  # gates hold theirs inside
        if isinstance(part, AttentionDelta) and part.initial_ids
    ]
    for ids in dict.fromkeys(part.initial_ids for _, part in pairs):
        wanted = [(path, part) for path, part in pairs if part.initial_ids == ids]
        computed = keys_and_values(model, ids, [path for path, _ in wanted])
        for path, part in wanted:
            part.init_from_(*computed[path])


class _Recorder:
    """In place of a hook point: records the last P keys and values (P, H_kv·K) of an attention's first call."""

    active = True

    def __init__(self, length: int) -> None:
        self.length = length
        self.recorded: tuple[Tensor, Tensor] | None = None

    def active_deltas(self, batch: int, device: torch.device) -> Sequence[ActiveDelta]:
        """Itself, for all rows."""
        return [ActiveDelta(self, RowsAndWeight(None, 1.0), None)]

    def __call__(self, call: AttentionCall) -> Any:
        if self.recorded is None:
            keys, values = (t[0].transpose(0, 1)[-self.length :].flatten(1) for t in (call.k, call.v))
            self.recorded = keys.clone(), values.clone()
        return call.run()


@torch.no_grad()
def keys_and_values(
    model: nn.Module, ids: Sequence[int], attentions: Sequence[str]
) -> dict[str, tuple[Tensor, Tensor]]:
    """The keys and values (P, H_kv·K) of each attention (module path) when the model reads P token ids.

    A decoder behind an encoder reads them too, after its start token; cross attention attends to the encoder's.
    """
    body: Any = getattr(model, "base_model", model)  # without the head, which may need more arguments
    tokens = _input_ids(body, ids)
    recorders = {path: _Recorder(len(ids)) for path in attentions}
    with _evaluating(model), _recording(model, recorders):
        if body.config.is_encoder_decoder:
            start = body.config.decoder_start_token_id
            behind = tokens if start is None else torch.cat([torch.full_like(tokens[:, :1], start), tokens], 1)
            body(input_ids=tokens, attention_mask=torch.ones_like(tokens), decoder_input_ids=behind)
        else:
            body(input_ids=tokens, attention_mask=torch.ones_like(tokens))
    recorded = {path: recorder.recorded for path, recorder in recorders.items() if recorder.recorded is not None}
    missed = sorted(recorders.keys() - recorded.keys())
    if missed:
        raise DeltatuneError(
            f"{type(model).__name__} does not reach {missed[0]} when it reads token ids; leave words and ids out"
        )
    return recorded


def _input_ids(body: Any, ids: Sequence[int]) -> Tensor:
    """Ids (1, P) on the model's device."""
    if body.main_input_name != "input_ids":
        raise DeltatuneError(
            f"{type(body).__name__} reads {body.main_input_name} and no token ids, so `words` and `ids` cannot "
            "initialise a prefix; leave them out"
        )
    table: Tensor = body.get_input_embeddings().weight
    beyond = [i for i in ids if not 0 <= i < len(table)]
    if beyond:
        raise DeltatuneError(
            f"{beyond[0]} is not a token id of this {type(body).__name__}, which has 0 to {len(table) - 1}"
        )
    return torch.tensor([list(ids)], device=table.device)


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
def _recording(model: Any, recorders: dict[str, _Recorder]) -> Iterator[None]:
    """The seam open, with a recorder in place of each hook point."""
    before, modules = model.config._attn_implementation, {path: model.get_submodule(path) for path in recorders}
    points = {path: getattr(module, HOOK_POINT, None) for path, module in modules.items()}
    set_attention_(model, register_seam(inner_attention(model), True))
    try:
        for path, module in modules.items():
            setattr(module, HOOK_POINT, recorders[path])
        yield
    finally:
        for path, module in modules.items():
            delattr(module, HOOK_POINT) if points[path] is None else setattr(module, HOOK_POINT, points[path])
        set_attention_(model, before)
