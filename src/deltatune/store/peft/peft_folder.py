"""Which types of PEFT are which methods of ours, and what of an adapter PEFT cannot hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn

from deltatune.core.adapter import Adapter
from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.host import Host
from deltatune.core.method import Method
from deltatune.store.atomic_files import read_json, write_folder, write_json
from deltatune.store.peft import peft_ia3 as scaling
from deltatune.store.peft import peft_lora as low_rank
from deltatune.store.peft import peft_prefix as prefixes
from deltatune.store.peft import peft_prompt as prompts
from deltatune.store.peft import peft_vera as vera
from deltatune.store.peft.peft_files import CONFIG, TENSORS, Family, Foreign, heads_of
from deltatune.store.tensors import attach_filled, check_tensors, read_tensors, write_tensors

WRITES: dict[str, ModuleType] = {
    "LoRA": low_rank,
    "RsLoRA": low_rank,
    "DoRA": low_rank,
    "PiSSA": low_rank,
    "IA3": scaling,
    "VeRA": vera,
    "Prefix": prefixes,
    "Prompt": prompts,
    "PTuning": prompts,
}
"""The family of each method that PEFT has too."""

READS: dict[str, ModuleType] = {
    "LORA": low_rank,
    "IA3": scaling,
    "VERA": vera,
    "PREFIX_TUNING": prefixes,
    "PROMPT_TUNING": prompts,
    "P_TUNING": prompts,
}
"""The family of each PEFT type."""


def family_of(method: Method) -> Family:
    """The family that writes a method."""
    return cast(Family, WRITES[type(method).__name__])


def obstacles(method: Method, host: Host, head: nn.Module | bool | None = None) -> list[str]:
    """Why PEFT could not hold an adapter of this method on this model; empty if it can. Known before training.

    `head` as for `Host.attach`: None if the adapter has copies of the model's own heads.
    """
    heads = [site.module for site in host.sites.values() if site.kind == "head"] if head is None else []
    return _obstacles(method.finished(), host, heads)


def _obstacles(method: Method, host: Host, heads: list[str]) -> list[str]:
    if len(method.parts) != 1 or method.parts[0] is not method:
        return [f"{method!r} is several methods at once, and PEFT holds one"]
    if type(method).__name__ not in WRITES:
        return [f"PEFT has no {type(method).__name__}; it has: {', '.join(sorted(WRITES))}"]
    return family_of(method).obstacles(method, host, heads)


def left_out(head: nn.Module | bool | None) -> list[str]:
    """What of an adapter stays behind when PEFT opens its folder, in words."""
    if not isinstance(head, nn.Module):
        return []
    return ["the task's head is deltatune's own: PEFT opens the adapted body, whose outputs the head would read"]


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


def save(host: Host, name: str, folder: Path, extra: Mapping[str, Any]) -> None:
    """Write a folder of PEFT's files alone. Raises DeltatuneError with every reason why PEFT cannot hold it."""
    adapter = host.adapters[name].finished()
    found = _refuse_obstacles(host, adapter)
    raise_all(found, f"adapter {name!r} cannot be exported for PEFT:" if found else "")
    check_tensors(adapter.tensors(), name)
    write_folder(folder, lambda work: write_files(host, adapter, work))


def write_peft(host: Host, adapter: Adapter, folder: Path) -> None:
    """Write PEFT's files into a folder beside ours, if PEFT can hold the adapter."""
    if not _refuse_obstacles(host, adapter):
        write_files(host, adapter, folder)


def write_files(host: Host, adapter: Adapter, folder: Path) -> None:
    """Write PEFT's config and tensors of a finished adapter."""
    family = family_of(adapter.method)
    theirs = family.write(host, adapter)
    tensors: dict[str, Tensor] = {**theirs.whole}
    tensors |= {family.root + key: tensor for key, tensor in theirs.tensors.items()}
    for path, head in heads_of(adapter).items():
        for key, tensor in head.get_submodule("module").state_dict().items():
            tensors[f"{family.root}{path}.{key}"] = tensor
    write_json(folder / CONFIG, theirs.config)
    write_tensors(folder / TENSORS, tensors)


def _refuse_obstacles(host: Host, adapter: Adapter) -> list[str]:
    return obstacles(adapter.method, host, None if heads_of(adapter) else False)
