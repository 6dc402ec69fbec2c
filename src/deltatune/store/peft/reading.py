"""Reading a folder that HF PEFT wrote. What would mean something else here is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.host import Host
from deltatune.store.atomic import read_json
from deltatune.store.peft.families import READS
from deltatune.store.peft.files import CONFIG, TENSORS, Family, Foreign
from deltatune.store.tensors import attach_filled, read_tensors

_ORIGIN = ("peft_type", "peft_version", "base_model_name_or_path")
"""What is remembered of PEFT's config."""


def knows(folder: Path) -> bool:
    """Whether the folder holds an adapter that PEFT wrote."""
    return (folder / CONFIG).is_file()


def load(host: Host, folder: Path, name: str, other_base: bool, head: nn.Module | None) -> None:
    """Attach a PEFT adapter, its saved classifier included. One error lists all that does not fit."""
    config = read_json(folder / CONFIG)
    kind = config.get("peft_type")
    if kind not in READS:
        raise DeltatuneError(
            f"cannot read the PEFT adapter {folder}: it is a {kind} adapter; what can be read: {', '.join(READS)}"
        )
    if not (folder / TENSORS).is_file():
        raise DeltatuneError(
            f"{folder} has no {TENSORS}; pickled .bin adapters are not read: save it as safetensors with PEFT"
        )
    family = cast(Family, READS[kind])
    tensors = {key.removeprefix(family.root): tensor for key, tensor in read_tensors(folder / TENSORS).items()}
    foreign = Foreign(str(folder), config, tensors)
    ours = family.read(host, foreign)
    heads = _heads(host, foreign, ours.used)
    attach_filled(
        host,
        name,
        ours.method,
        {**ours.tensors, **heads},
        f"the PEFT adapter {folder} does not fit this model:",
        head=head or (None if heads else False),
        extra={"origin": {"format": "peft", **{key: config.get(key) for key in _ORIGIN}}},
    )


def _heads(host: Host, foreign: Foreign, used: set[str]) -> dict[str, Tensor]:
    """The tensors of the model's own heads under our names. Raises for any tensor that has no place here."""
    sites = [site for site in host.sites.values() if site.kind == "head"]
    found, problems = {}, []
    for key, tensor in foreign.tensors.items():
        if key in used:
            continue
        site = next((site for site in sites if key.startswith(site.module + ".")), None)
        if site is not None:
            found[f"head.{site.name}.module.{key.removeprefix(site.module + '.')}"] = tensor
        elif not _as_in_base(host, key, tensor):
            problems.append(f"{key} is a trained copy of something that is no head of this model, or of another type")
    raise_all(problems, f"the PEFT adapter {foreign.place} does not fit this model:" if problems else "")
    return found


def _as_in_base(host: Host, key: str, tensor: Tensor) -> bool:
    """Whether a tensor is only the base's own, which PEFT saves beside adapted embeddings."""
    own = dict(host.base_tensors()).get(key.replace(".base_layer.", "."))
    return own is not None and own.shape == tensor.shape and torch.equal(own.to(tensor), tensor)
