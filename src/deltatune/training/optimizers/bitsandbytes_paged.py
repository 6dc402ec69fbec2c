"""The paged optimizers of bitsandbytes, for parameters on a GPU, and their states under the names that torch's have."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from deltatune.core.errors import DeltatuneError
from deltatune.training.optimizers.chunked_adamw import FIRST, FIRST_SCALES, SECOND, SECOND_SCALES
from deltatune.training.optimizers.state_bytes import OptimizerName, is_8bit

NAMES = {"state1": FIRST, "state2": SECOND, "absmax1": FIRST_SCALES, "absmax2": SECOND_SCALES}
"""bitsandbytes' names of what it keeps, and torch's."""


def bitsandbytes_adamw(name: OptimizerName, groups: Sequence[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
    """PagedAdamW or PagedAdamW8bit. Raises DeltatuneError where bitsandbytes is not installed or knows no GPU."""
    try:
        optim: Any = importlib.import_module("bitsandbytes.optim")
    except Exception as error:  # not installed, or built for another machine
        raise DeltatuneError(
            f"optimizer={name!r} needs bitsandbytes on a GPU, and it cannot be imported ({error}): "
            "pip install bitsandbytes; or choose adamw or adamw-8bit, which need no other package"
        ) from None
    kind = optim.PagedAdamW8bit if is_8bit(name) else optim.PagedAdamW
    optimizer: torch.optim.Optimizer = kind(list(groups), lr=lr, weight_decay=0.0)
    return optimizer


def is_bitsandbytes(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimizer is one of bitsandbytes."""
    return type(optimizer).__module__.startswith("bitsandbytes.")


def bitsandbytes_tensors(optimizer: Any, parameter: Tensor) -> dict[str, Tensor]:
    """What is kept of a parameter, on the CPU; empty before its first update."""
    state = optimizer.state.get(parameter, {})
    tensors = {NAMES[key]: value.cpu() for key, value in state.items() if key in NAMES}
    return tensors | ({"step": torch.tensor(float(state["step"]))} if tensors else {})


def load_bitsandbytes_(optimizer: Any, stored: Mapping[int, Mapping[str, Tensor]]) -> None:
    """Restore `bitsandbytes_tensors` of the parameters with these numbers, in the optimizer's order."""
    places = [(g, i, p) for g, group in enumerate(optimizer.param_groups) for i, p in enumerate(group["params"])]
    for number, tensors in stored.items():
        g, i, parameter = places[number]
        optimizer.init_state(optimizer.param_groups[g], parameter, g, i)
        state = optimizer.state[parameter]
        state["step"] = int(tensors["step"])
        for key, name in NAMES.items():
            if key in state:
                state[key].copy_(tensors[name].reshape(state[key].shape))
