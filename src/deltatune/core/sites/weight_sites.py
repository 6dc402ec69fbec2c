"""Every parameter of the base as a site of kind `weight`, with the number of its block."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import nn

from deltatune.core.quantization.stored_weights import plain_parameters, stored_weight
from deltatune.core.sites.blocks import Block, is_norm
from deltatune.core.sites.module_names import names_embeddings
from deltatune.core.sites.site import Site


def weight_sites(model: nn.Module, blocks: list[Block], heads: list[str]) -> Iterator[Site]:
    """Every distinct base parameter, quantised weights among them; `layer`: its block's number, `depth` for those above
    the blocks, or None."""
    deepest = max((block.depth for block in blocks), default=0)
    for owner, attribute, params, quantized in _parameters(model):
        path = f"{owner}.{attribute}" if owner else attribute
        if path.split(".")[0] in heads or path.split(".")[0] == "deltatune" or not params:
            continue
        block = next((block for block in blocks if path.startswith(block.path + ".")), None)
        above = (
            block is None and not names_embeddings(owner) and (is_norm(model.get_submodule(owner)) or "pooler" in owner)
        )
        depth = block.depth if block else deepest
        yield Site(
            path, "weight", owner, owner, 0, 0, params=params, attribute=attribute, quantized=quantized,
            layer=block.index if block else (depth if above else None), depth=depth,
        )  # fmt: skip


def _parameters(model: nn.Module) -> Iterator[tuple[str, str, int, str]]:
    """(module's path, attribute, number of values, what it is quantised to) of every distinct parameter."""
    seen: set[int] = set()
    for owner, module in model.named_modules():
        stored = stored_weight(module)
        if stored is not None:
            yield owner, "weight", math.prod(stored.shape), stored.label
        for attribute, parameter in plain_parameters(module).items():
            if id(parameter) not in seen:
                yield owner, attribute, parameter.numel(), ""
            seen.add(id(parameter))
