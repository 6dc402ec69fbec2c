"""Sharding of the base over the processes with FSDP2; every process keeps the whole adapter.

Every block gathers its weights for its own forward and backward. They are frozen, so no gradients are reduced for them,
and the hooks of the adapter, which run within a block's forward, see the whole weights.
"""

from __future__ import annotations

import inspect
import os
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh

from deltatune.core.errors import DeltatuneError
from deltatune.core.host import Host
from deltatune.core.sites.blocks import find_blocks
from deltatune.store.fingerprint import remember
from deltatune.training.scaling.distributed import FSDP, Processes


def fsdp_requested() -> bool:
    """Whether `accelerate launch --use_fsdp` has started this process."""
    return os.environ.get(FSDP, "false").lower() == "true"


def shard_(host: Host, processes: Processes) -> None:
    """Shard the base over the processes if `accelerate launch` asks for it; they must run it together from then on.

    Raises DeltatuneError for FSDP 1, for adapters that change the base's own weights, and for an old torch.
    """
    if not fsdp_requested() or processes.size == 1 or is_sharded(host.model):  # the Host refuses later adapters
        return
    check_shardable(host)
    from torch.distributed.fsdp import fully_shard

    remember(host)
    adapters = getattr(host.model, "deltatune", None)
    options: dict[str, Any] = {
        "mesh": init_device_mesh(processes.device.type, (processes.size,)),
        "reshard_after_forward": flag("FSDP_RESHARD_AFTER_FORWARD", True),
        "ignored_params": set(adapters.parameters()) if isinstance(adapters, torch.nn.Module) else set(),
    }
    for block in find_blocks(host.model):
        fully_shard(host.model.get_submodule(block.path), **options)
    fully_shard(host.model, **options)


def check_shardable(host: Host) -> None:
    """Raise DeltatuneError unless this base can be sharded under its adapters."""
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise DeltatuneError(
            f"accelerate asks for FSDP version {version}, which flattens frozen and trained weights into one tensor; "
            "start with --fsdp_version 2 (in its config file fsdp_version: 2)"
        )
    if flag("FSDP_OFFLOAD_PARAMS", False):
        raise DeltatuneError(
            "accelerate is told to keep the base in the CPU's memory (--fsdp_offload_params), which deltatune does "
            "not support; leave that out, and shard the base over more GPUs instead"
        )
    quantized = next((site for site in host.sites.weights.values() if site.quantized), None)
    if quantized is not None:
        raise DeltatuneError(
            f"weights of the base are stored in {quantized.quantized}, and FSDP shards no codes: every process would "
            "hold all of them. Train it without --use_fsdp (a quantised base is small enough to be whole in each "
            "process), or load it without quantisation"
        )
    for name, adapter in host.adapters.items():
        inside = [site.name for site in adapter.sites.values() if site.kind == "weight"]
        if inside:
            raise DeltatuneError(
                f"adapter {name!r} ({adapter.method!r}) lives in the base's own weights ({inside[0]}), which FSDP "
                "shards over the processes; train it without --use_fsdp, or use a method that adds to the base, such "
                "as LoRA()"
            )
    try:
        from torch.distributed.fsdp import fully_shard

        supported = "ignored_params" in inspect.signature(fully_shard).parameters
    except ImportError:
        supported = False
    if not supported:
        raise DeltatuneError(f"FSDP2 needs torch 2.7 or newer, this is {torch.__version__}: pip install -U torch")


def flag(name: str, default: bool) -> bool:
    """A boolean option of accelerate, read from the environment."""
    return os.environ.get(name, str(default)).lower() in ("true", "1", "full_shard", "yes")


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether the weights of a model are sharded over processes."""
    return hasattr(model, "set_reshard_after_forward")


def unshard_root_(model: torch.nn.Module) -> None:
    """Gather the weights outside the blocks: generation calls parts of a model without FSDP's hooks."""
    if is_sharded(model):
        model.unshard()  # type: ignore[operator]
