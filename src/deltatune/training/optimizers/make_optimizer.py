"""The optimizer of a training run, from its name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from deltatune.core.errors import DeltatuneError
from deltatune.training.optimizers.bitsandbytes_paged import bitsandbytes_adamw
from deltatune.training.optimizers.chunked_adamw import FUSED, ChunkedAdamW
from deltatune.training.optimizers.state_bytes import OptimizerName, is_8bit, is_paged
from deltatune.training.scaling.disk_file import DiskFile, folder_for


def make_optimizer(
    name: OptimizerName,
    groups: Sequence[dict[str, Any]],
    lr: float,
    folder: str | None = None,
    out: Path | None = None,
) -> torch.optim.Optimizer:
    """AdamW on groups of parameters, each {"params", "lr", "weight_decay"}; betas 0.9 and 0.999, epsilon 1e-8.

    Paged, with parameters on CUDA, it is bitsandbytes'; elsewhere its states are in a file without a name in `folder`,
    else in that of the run's checkpoints, `out`, else in a temporary one. Raises DeltatuneError for a folder that
    keeps files in memory, one that cannot be written or is full, and where bitsandbytes is needed and missing.
    """
    kinds = {parameter.device.type for group in groups for parameter in group["params"]}
    if name == "adamw":
        return torch.optim.AdamW(list(groups), lr=lr, fused=kinds <= set(FUSED))
    if is_paged(name) and "cuda" in kinds:
        if folder is not None:
            raise DeltatuneError(
                f"optimizer_folder={folder!r}: on a GPU, {name} pages its states to the host's memory and has no file; "
                "leave it out"
            )
        return bitsandbytes_adamw(name, groups, lr)
    if folder is not None and not is_paged(name):
        raise DeltatuneError(f"optimizer_folder={folder!r} is for paged optimizers, and this is {name}; leave it out")
    if not is_paged(name):
        return ChunkedAdamW(list(groups), lr=lr, eight_bit=True)
    place = folder_for(folder, out)
    advice = "" if is_8bit(name) else ", or paged-adamw-8bit, which needs a quarter of it"
    return ChunkedAdamW(list(groups), lr=lr, eight_bit=is_8bit(name), file=lambda size: DiskFile(place, size, advice))


def arithmetic_of(name: OptimizerName, device: str = "cpu") -> OptimizerName:
    """The optimizer, of those whose results have the same bits, that stands for all of them in a run's identity.

    Where the states are in a file they are as in memory; on a GPU, bitsandbytes rounds in another order.
    """
    if device == "cuda" or not is_paged(name):
        return name
    return "adamw-8bit" if is_8bit(name) else "adamw"
