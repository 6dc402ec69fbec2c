"""The trial whether rows of a model can join a batch at any step: tried on a few tokens, not assumed from its name."""

from __future__ import annotations

from inspect import signature

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from deltatune.models.architecture import family
from deltatune.serving.engine.prompt_reading import PromptReading, read_on_
from deltatune.serving.engine.routed_host import RoutedHost, attempt
from deltatune.serving.engine.running_cache import RunningCache, next_logits

TOLERANCE = {False: 1e-3, True: 0.1}
"""Largest difference to the logits of a text that is read whole, relative to the largest logit, in float32 and in
bfloat16."""
LAYERS = (DynamicLayer, DynamicSlidingWindowLayer)
"""The kinds of layers whose memory is keys and values of all tokens, or of those in a window."""


def bytes_per_token(routed: RoutedHost) -> int | None:
    """Bytes of a token's keys and values, if rows can join at any step; None where they cannot."""
    model, facts = routed.host.model, routed.host.sites.facts
    names = signature(model.forward).parameters
    if family(model.config) != "decoder" or not {"past_key_values", "use_cache", "position_ids"} <= names.keys():  # type: ignore[arg-type]
        return None
    if any(type(layer) not in LAYERS for layer in DynamicCache(config=model.config).layers):  # type: ignore[arg-type]
        return None
    ids = [
        [(7 * row + 5 * i + 3) % min(facts.vocabulary, 64) for i in range(length)] for row, length in enumerate((9, 5))
    ]
    with routed.routed([{}, {}]), torch.inference_mode():
        tried = attempt(lambda: _joined_logits(routed, ids))
        plain = attempt(lambda: torch.stack([_whole_logits(routed, row) for row in ids]))
    if isinstance(tried, Exception) or isinstance(plain, Exception):
        return None
    logits, size = tried
    most = TOLERANCE[routed.bfloat16 or plain.dtype != torch.float32] * float(plain.abs().amax().clamp(min=1))
    return size if float((logits - plain).abs().amax()) <= most else None


def _joined_logits(routed: RoutedHost, ids: list[list[int]]) -> tuple[Tensor, int]:
    """Logits (2, V) behind two texts: the second joins the first while that generates, the first was read in parts."""
    first, second = PromptReading(ids[0][:-2]), PromptReading(ids[1][:-1])
    cache = RunningCache()
    read_on_(routed.host, [first], [4], routed.bfloat16)
    read_on_(routed.host, [first], [first.left], routed.bfloat16)
    cache.join(first.states)
    size = sum(keys.nbytes + values.nbytes for keys, values in first.states) // len(first.ids)
    _step(routed, cache, [ids[0][-2]])
    read_on_(routed.host, [second], [second.left], routed.bfloat16)
    cache.join(second.states)
    return _step(routed, cache, [ids[0][-1], ids[1][-1]]), size


def _step(routed: RoutedHost, cache: RunningCache, tokens: list[int]) -> Tensor:
    logits = next_logits(routed, cache, 0, len(tokens), tokens)
    cache.advance()
    return logits


def _whole_logits(routed: RoutedHost, ids: list[int]) -> Tensor:
    """Logits (V,) behind a text that is read whole."""
    device = routed.device
    with torch.autocast(device.type, torch.bfloat16, enabled=routed.bfloat16):
        outputs = routed.host.model(input_ids=torch.tensor([ids], device=device), use_cache=False)
    logits: Tensor = outputs.logits[0, -1].float()
    return logits
