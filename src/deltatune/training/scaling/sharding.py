"""A base too large for one device, spread over the processes (FSDP2); the adapter is whole in each of them.

Every block gathers its weights for its own forward and backward alone. They are frozen, so nothing is sent back for
them, and the hooks of the adapter, which act within a block's forward, see them as they always are.
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


def asked() -> bool:
    """Whether `accelerate launch --use_fsdp` has started this process."""
    return os.environ.get(FSDP, "false").lower() == "true"


def shard_(host: Host, processes: Processes) -> None:
    """Spread the base over the processes; afterwards all of them must run it together.

    Raises DeltatuneError for what cannot be: another FSDP, adapters that live in the base's own weights, an old torch.
    """
    if not asked() or processes.size == 1 or sharded(host.model):  # what is attached after that is refused by the Host
        return
    check(host)
    from torch.distributed.fsdp import fully_shard

    remember(host)
    host_keeps = getattr(host.model, "deltatune", None)
    options: dict[str, Any] = {
        "mesh": init_device_mesh(processes.device.type, (processes.size,)),
        "reshard_after_forward": flag("FSDP_RESHARD_AFTER_FORWARD", True),
        "ignored_params": set(host_keeps.parameters()) if isinstance(host_keeps, torch.nn.Module) else set(),
    }
    for block in find_blocks(host.model):
        fully_shard(host.model.get_submodule(block.path), **options)
    fully_shard(host.model, **options)


def check(host: Host) -> None:
    """Raise DeltatuneError unless this base can be spread under its adapters."""
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise DeltatuneError(
            f"accelerate asks for FSDP version {version}, which joins frozen and trained weights into one; start with "
            "--fsdp_version 2 (in its config file fsdp_version: 2)"
        )
    if flag("FSDP_OFFLOAD_PARAMS", False):
        raise DeltatuneError(
            "accelerate is told to keep the base in the CPU's memory (--fsdp_offload_params), which deltatune does "
            "not; leave that out, and spread the base over more GPUs instead"
        )
    for name, adapter in host.adapters.items():
        inside = [site.name for site in adapter.sites.values() if site.kind == "weight"]
        if inside:
            raise DeltatuneError(
                f"adapter {name!r} ({adapter.method!r}) lives in the base's own weights ({inside[0]}), which FSDP "
                "spreads over the processes; train it without --use_fsdp, or take a method that adds to the base, such "
                "as LoRA()"
            )
    try:
        from torch.distributed.fsdp import fully_shard

        known = "ignored_params" in inspect.signature(fully_shard).parameters
    except ImportError:
        known = False
    if not known:
        raise DeltatuneError(f"FSDP2 needs torch 2.7 or newer, this is {torch.__version__}: pip install -U torch")


def flag(name: str, default: bool) -> bool:
    """A switch that accelerate passes on in the environment."""
    return os.environ.get(name, str(default)).lower() in ("true", "1", "full_shard", "yes")


def sharded(model: torch.nn.Module) -> bool:
    """Whether the weights of a model are spread over processes."""
    return hasattr(model, "set_reshard_after_forward")


def gather_root_(model: torch.nn.Module) -> None:
    """Make whole what lies outside the blocks: generation calls parts of a model, of which FSDP is told nothing."""
    if sharded(model):
        model.unshard()  # type: ignore[operator]
