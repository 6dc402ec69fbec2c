"""Gradient checkpointing: each block's activations are discarded and computed again in backward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from deltatune.core.errors import DeltatuneError


@contextmanager
def gradient_checkpointing(model: nn.Module, enabled: bool) -> Iterator[None]:
    """Within this context the model checkpoints its blocks in training; afterwards it is as before.

    Non-reentrant, because the input of the first block has no gradient under a frozen base.
    Raises DeltatuneError for a model that does not support it.
    """
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"  # before transformers 5.2x
    if not enabled or getattr(model, f"is_{kind}_checkpointing", False):
        yield
        return
    if getattr(model, "_supports_gradient_checkpointing", False):  # a model of diffusers
        model.enable_gradient_checkpointing()  # type: ignore[operator]
        try:
            yield
        finally:
            model.disable_gradient_checkpointing()  # type: ignore[operator]
        return
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise DeltatuneError(
            f"{type(model).__name__} does not support gradient checkpointing; set checkpointing=False and split "
            "batches with accumulation instead"
        )
    configs = {id(c): c for module in model.modules() if (c := getattr(module, "config", None)) is not None}
    caching: list[Any] = [config for config in configs.values() if getattr(config, "use_cache", False)]
    asked = bool(getattr(model, "_require_grads_hooks", None)) or hasattr(model, "_require_grads_hook")
    getattr(model, f"{kind}_checkpointing_enable")({"use_reentrant": False})
    if not asked and hasattr(
        model, "_require_grads_hook"
    ):  # for the reentrant kind: backward would go to the first block
        model.disable_input_require_grads()  # type: ignore[operator]
    for config in caching:  # a cache would be filled twice; a decoder behind an encoder has a config of its own
        config.use_cache = False
    try:
        yield
    finally:
        getattr(model, f"{kind}_checkpointing_disable")()
        for config in caching:
            config.use_cache = True
