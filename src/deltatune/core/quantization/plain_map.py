"""Quantised maps as plain ones with exactly the same values, also in place, so that codes can be put back."""

from __future__ import annotations

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from deltatune.core.quantization.quantized_linear import QuantizedLinear
from deltatune.core.quantization.stored_weights import is_transposed, stored_weight, weight_of

_HOOKS = tuple(name for name in vars(nn.Module()) if "hook" in name and "state_dict" not in name)
"""Attributes with the hooks of forward and backward, which belong to a place in a model, not to its weights."""


@torch.no_grad()
def plain_map(module: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """A Linear or Conv1D with the values that a quantised map's codes stand for, and its bias.

    dtype: that of the new weight; None: that of the weight before quantisation.
    """
    weight = weight_of(module)
    weight = weight.to(dtype or weight.dtype).contiguous()
    bias = getattr(module, "bias", None)
    with torch.device("meta"):
        new: nn.Module
        if is_transposed(module):
            new = Conv1D(weight.shape[1], weight.shape[0])  # type: ignore[no-untyped-call]
        else:
            new = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    new.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        same = bias.dtype == weight.dtype
        new.bias = bias if same else nn.Parameter(bias.detach().to(weight.dtype), requires_grad=False)
    return new.train(module.training)


def plain_dtype(model: nn.Module, module: nn.Module) -> torch.dtype | None:
    """The type of a plain map in the place of another package's, whose stored type need not be that of the model: the
    model's. None for ours, which know it."""
    if isinstance(module, QuantizedLinear):
        return None
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), None)


def exchangeable(module: nn.Module) -> bool:
    """Whether a quantised map's weight can be read, and the map made plain in place."""
    stored = stored_weight(module)
    plain = nn.Module.__new__(Conv1D if is_transposed(module) else nn.Linear)
    try:
        plain.__class__ = type(module)
    except TypeError:  # its class derives from more than nn.Module, as quanto's does
        return False
    return stored is None or (stored.readable and stored.typed)


def exchange_(module: nn.Module, other: nn.Module) -> None:
    """Let two modules exchange class, parameters and buffers; hooks and the training mode stay where they are.

    So a map in a model becomes plain while all that refers to it still does, and a second exchange takes it back.
    """
    first, second = dict(vars(module)), dict(vars(other))
    module.__class__, other.__class__ = type(other), type(module)
    for target, content, own in ((module, second, first), (other, first, second)):
        vars(target).clear()
        vars(target).update(content | {name: own[name] for name in (*_HOOKS, "training")})
