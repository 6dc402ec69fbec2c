"""Gradient checkpointing: each block's activations are thrown away and computed once more in backward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from deltatune.core.errors import DeltatuneError


@contextmanager
def recomputing(model: nn.Module, wanted: bool) -> Iterator[None]:
    """While this lasts the model recomputes its blocks in training; then it is as before.

    Without reentrance, since the input of the first block has no gradient under a frozen base.
    Raises DeltatuneError for a model that cannot.
    """
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"  # before transformers 5.2x
    if not wanted or getattr(model, f"is_{kind}_checkpointing", False):
        yield
        return
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise DeltatuneError(
            f"{type(model).__name__} cannot recompute its blocks (it does not support gradient checkpointing); set "
            "checkpointing off and split batches with accumulation instead"
        )
    configs = {id(found): found for module in model.modules() if (found := getattr(module, "config", None)) is not None}
    caching: list[Any] = [config for config in configs.values() if getattr(config, "use_cache", False)]
    getattr(model, f"{kind}_checkpointing_enable")({"use_reentrant": False})
    for config in caching:  # a cache would be filled twice; a decoder behind an encoder has a config of its own
        config.use_cache = False
    try:
        yield
    finally:
        getattr(model, f"{kind}_checkpointing_disable")()
        for config in caching:
            config.use_cache = True
