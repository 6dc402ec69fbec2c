"""PEFT folders, written and read: which method corresponds to which PEFT type, and which adapters PEFT cannot hold."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from deltatune.core.adapter import Adapter
from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.host import Host
from deltatune.core.input_validation.field_validation import shortened
from deltatune.core.method import Method
from deltatune.core.registry import registry
from deltatune.store.atomic_files import read_json, write_folder, write_json
from deltatune.store.peft.peft_config import check_config
from deltatune.store.peft.peft_format import CONFIG, TENSORS, PeftFolder, PeftFormat, head_copies
from deltatune.store.peft.peft_fourierft import FourierFTFormat
from deltatune.store.peft.peft_ia3 import IA3Format
from deltatune.store.peft.peft_ln_tuning import LNTuningFormat
from deltatune.store.peft.peft_lora import LoRAFormat
from deltatune.store.peft.peft_lycoris import LoHaFormat, LoKrFormat
from deltatune.store.peft.peft_oft import BOFTFormat, OFTFormat
from deltatune.store.peft.peft_prefix import PrefixFormat
from deltatune.store.peft.peft_prompt import PromptFormat
from deltatune.store.peft.peft_vblora import VBLoRAFormat
from deltatune.store.peft.peft_vera import VeRAFormat
from deltatune.store.stored_adapter import StoredAdapter
from deltatune.store.tensors import check_tensors, read_tensors, write_tensors

if TYPE_CHECKING:
    from deltatune.core.host_parts.bank import Bank

_LORA, _IA3, _VERA, _PREFIX, _PROMPT = LoRAFormat(), IA3Format(), VeRAFormat(), PrefixFormat(), PromptFormat()
_LOHA, _LOKR, _OFT, _BOFT = LoHaFormat(), LoKrFormat(), OFTFormat(), BOFTFormat()
_FOURIER, _VBLORA, _LN = FourierFTFormat(), VBLoRAFormat(), LNTuningFormat()

WRITES: dict[str, PeftFormat] = {
    "LoRA": _LORA,
    "RsLoRA": _LORA,
    "DoRA": _LORA,
    "PiSSA": _LORA,
    "IA3": _IA3,
    "VeRA": _VERA,
    "LoHa": _LOHA,
    "LoKr": _LOKR,
    "OFT": _OFT,
    "BOFT": _BOFT,
    "FourierFT": _FOURIER,
    "VBLoRA": _VBLORA,
    "LNTuning": _LN,
    "Prefix": _PREFIX,
    "Prompt": _PROMPT,
    "PTuning": _PROMPT,
}
"""The format of each method that PEFT has too."""

READS: dict[str, PeftFormat] = {
    "LORA": _LORA,
    "IA3": _IA3,
    "VERA": _VERA,
    "LOHA": _LOHA,
    "LOKR": _LOKR,
    "OFT": _OFT,
    "BOFT": _BOFT,
    "FOURIERFT": _FOURIER,
    "VBLORA": _VBLORA,
    "LN_TUNING": _LN,
    "PREFIX_TUNING": _PREFIX,
    "PROMPT_TUNING": _PROMPT,
    "P_TUNING": _PROMPT,
}
"""The format of each PEFT type."""

_ORIGIN = ("peft_type", "peft_version", "base_model_name_or_path")
"""Keys of PEFT's config that are stored as the origin of an adapter."""


def peft_obstacles(method: Method, host: Host, head: nn.Module | bool | None = None) -> list[str]:
    """List reasons why PEFT cannot hold an adapter of this method on this model; known before training.

    `head` as for `Host.attach`: None if the adapter has copies of the model's own heads.
    """
    heads = [site.module for site in host.sites.values() if site.kind == "head"] if head is None else []
    method = method.without_reparametrisation()
    if len(method.parts) != 1 or method.parts[0] is not method:
        return [f"{method!r} is several methods at once, and PEFT holds one"]
    if type(method).__name__ not in WRITES:
        return [f"PEFT has no {type(method).__name__}; it has: {', '.join(sorted(WRITES))}"]
    peft_format = WRITES[type(method).__name__]
    return [*peft_format.obstacles(method, host, heads), *_other_than_pefts(method, host, peft_format)]


def _other_than_pefts(method: Method, host: Host, peft_format: PeftFormat) -> list[str]:
    """What PEFT would do otherwise in a denoiser: convolutions but LoRA's, and modules that it finds by path ends."""
    if not host.sites.facts.denoiser:
        return []
    picked = method.pick(host.sites)
    convolution = next((site.name for site in picked if site.kernel is not None), None)
    name = type(method).__name__
    problems = []
    if convolution is not None and peft_format is not _LORA:
        problems.append(f"PEFT's {name} of a convolution has another form, and this one acts at {convolution}")
    ends: dict[str, str] = {}
    for path in dict.fromkeys(site.module for site in host.sites.values()):
        for end in _ends(path):
            ends.setdefault(end, path)
    for path in sorted({site.module for site in picked} & ends.keys()):
        problems.append(f"PEFT names modules by the ends of their paths, and {path} is that of {ends[path]} too")
    return problems


def _ends(path: str) -> list[str]:
    """`a.b.c` -> `b.c`, `c`."""
    parts = path.split(".")
    return [".".join(parts[i:]) for i in range(1, len(parts))]


def left_out(head: nn.Module | bool | None) -> list[str]:
    """List the parts of an adapter that PEFT does not read from its folder."""
    if not isinstance(head, nn.Module):
        return []
    return ["the head of the task is not exported: PEFT reads the adapted body, without the head on its outputs"]


# ---- reading


def knows(folder: Path) -> bool:
    """Whether the folder holds an adapter that PEFT wrote."""
    return os.path.lexists(folder / CONFIG)  # one that cannot be read is named when it is read


def load(host: Host, folder: Path, name: str, other_base: bool, head: nn.Module | None) -> None:
    """Attach a PEFT adapter with its saved classifier. One error lists everything that does not fit."""
    read_stored(folder).attach_to(host, name, other_base, head)


@dataclass(frozen=True, eq=False)
class StoredPeft(StoredAdapter):
    """A PEFT adapter as it was read from its folder.

    Its tensors have PEFT's names, and its method is what PEFT's config says of it without the sites; `fitted` makes
    both ours, for which it takes the model.
    """

    content: PeftFolder | None = None
    format: PeftFormat | None = None

    def fitted(self, host: Host) -> StoredAdapter:
        """It as a method of ours and its tensors, for one model. Raises DeltatuneError for all that does not fit."""
        assert self.content is not None
        assert self.format is not None
        imported = self.format.read(host, self.content)
        heads = _head_tensors(host, self.content, imported.used)
        return StoredAdapter(
            self.folder,
            imported.method,
            {**imported.tensors, **heads},
            own_head=bool(heads),
            extra=self.extra,
            finite=self.finite,
            kind=self.kind,
        )

    def attach_to(self, host: Host, name: str, other_base: bool = False, head: nn.Module | None = None) -> Adapter:
        return self.fitted(host).attach_to(host, name, other_base, head)

    def can_go_into(self, bank: Bank) -> bool:
        return self.fitted(bank.host).can_go_into(bank)

    def put_into(self, bank: Bank, name: str, other_base: bool = False) -> None:
        self.fitted(bank.host).put_into(bank, name, other_base)


def _told_method(config: Mapping[str, Any]) -> Method:
    """The method of a PEFT config, without the sites at which it acts."""
    kind = config["peft_type"]
    numbers = {ours: config[theirs] for ours, theirs in _TOLD.get(kind, {}).items() if config.get(theirs)}
    name = _NAMES[kind]
    if kind == "LORA" and (config.get("use_dora") or config.get("use_rslora")):
        name = "DoRA" if config.get("use_dora") else "RsLoRA"
    try:
        method: Method = registry()[name](**numbers)
    except DeltatuneError:  # the tensors decide; what is wrong with them is told when it is fitted
        method = registry()[name]()
    return method


_NAMES = {
    "LORA": "LoRA", "IA3": "IA3", "VERA": "VeRA", "PREFIX_TUNING": "Prefix", "PROMPT_TUNING": "Prompt",
    "P_TUNING": "Prompt", "LOHA": "LoHa", "LOKR": "LoKr", "OFT": "OFT", "BOFT": "BOFT",
    "FOURIERFT": "FourierFT", "VBLORA": "VBLoRA", "LN_TUNING": "LNTuning",
}  # fmt: skip
"""The method of each PEFT type."""
_TOLD = {
    "LORA": {"r": "r", "alpha": "lora_alpha"},
    "VERA": {"r": "r"},
    "LOHA": {"r": "r", "alpha": "alpha"},
    "LOKR": {"r": "r", "alpha": "alpha"},
    "FOURIERFT": {"n": "n_frequency", "alpha": "scaling", "seed": "random_loc_seed"},
    "VBLORA": {"r": "r", "vectors": "num_vectors", "length": "vector_length", "k": "topk"},
    "OFT": {"block": "oft_block_size"},
    "BOFT": {"block": "boft_block_size", "factors": "boft_n_butterfly_factor"},
    "PREFIX_TUNING": {"length": "num_virtual_tokens"},
    "PROMPT_TUNING": {"length": "num_virtual_tokens"},
    "P_TUNING": {"length": "num_virtual_tokens"},
}
"""Fields of the method that PEFT's config tells, and their keys there."""


def read_stored(folder: Path, verified: bool = False) -> StoredPeft:
    """Read the PEFT adapter of a folder. Raises DeltatuneError for types that are not read and damaged files."""
    config = read_json(folder / CONFIG)
    kind = config.get("peft_type")
    if not isinstance(kind, str) or kind not in READS:
        raise DeltatuneError(
            f"cannot read the PEFT adapter {folder}: its type is {shortened(kind, quoted=False)}; supported types: "
            f"{', '.join(READS)}"
        )
    if not os.path.lexists(folder / TENSORS):
        raise DeltatuneError(
            f"{folder} has no {TENSORS}; pickled .bin adapters are not read: save it as safetensors with PEFT"
        )
    peft_format = READS[kind]
    tensors = {key.removeprefix(peft_format.prefix): tensor for key, tensor in read_tensors(folder / TENSORS).items()}
    content = PeftFolder(str(folder), config, tensors)
    check_config(content)
    return StoredPeft(
        folder,
        _told_method(config),
        tensors,
        extra={"origin": {"format": "peft", **{key: config.get(key) for key in _ORIGIN}}},
        finite=verified,
        kind="the PEFT adapter",
        content=content,
        format=peft_format,
    )


def _head_tensors(host: Host, folder: PeftFolder, used: set[str]) -> dict[str, Tensor]:
    """The tensors of the model's own heads by our names. Raises DeltatuneError for tensors that do not fit."""
    sites = [site for site in host.sites.values() if site.kind == "head"]
    tensors, problems = {}, []
    for key, tensor in folder.tensors.items():
        if key in used:
            continue
        site = next((site for site in sites if key.startswith(site.module + ".")), None)
        if site is not None:
            tensors[f"head.{site.name}.module.{key.removeprefix(site.module + '.')}"] = tensor
        elif not _equals_base(host, key, tensor):
            problems.append(f"{key} is a trained copy of a module that is not a head of this model, or of another type")
    raise_all(problems, f"the PEFT adapter {folder.path} does not fit this model:" if problems else "")
    return tensors


def _equals_base(host: Host, key: str, tensor: Tensor) -> bool:
    """Whether a tensor equals the base's own, which PEFT saves beside adapted embeddings and heads."""
    path = _untied(host, key.replace(".base_layer.", "."))
    base = host.base.tensor(path) if path in host.sites.weights else None
    return base is not None and base.shape == tensor.shape and torch.equal(base.to(tensor), tensor)


def _untied(host: Host, path: str) -> str:
    """The name of a parameter here, where tied weights have one; PEFT writes the head's own."""
    if path in host.sites.weights:
        return path
    tied = dict(host.model.named_parameters(remove_duplicate=False)).get(path)
    return next((name for name, parameter in host.model.named_parameters() if parameter is tied), path)


# ---- writing


def save(host: Host, name: str, folder: Path, extra: Mapping[str, Any]) -> None:
    """Write a folder with PEFT's files alone. Raises DeltatuneError with every reason why PEFT cannot hold it."""
    adapter = host.adapters[name].without_reparametrisation()
    problems = _obstacles_of(host, adapter)
    raise_all(problems, f"adapter {name!r} cannot be exported for PEFT:" if problems else "")
    check_tensors(adapter.tensors(), name)
    write_folder(folder, lambda work: _write_files(host, adapter, work))


def write_peft(host: Host, adapter: Adapter, folder: Path) -> None:
    """Write PEFT's files into a folder beside ours, if PEFT can hold the adapter."""
    if not _obstacles_of(host, adapter):
        _write_files(host, adapter, folder)


def _write_files(host: Host, adapter: Adapter, folder: Path) -> None:
    """Write PEFT's config and tensors of a finished adapter."""
    peft_format = WRITES[type(adapter.method).__name__]
    exported = peft_format.write(host, adapter)
    tensors: dict[str, Tensor] = {**exported.unprefixed}
    tensors |= {peft_format.prefix + key: tensor for key, tensor in exported.tensors.items()}
    for path, head in head_copies(adapter).items():
        for key, tensor in head.get_submodule("module").state_dict().items():
            tensors[f"{peft_format.prefix}{path}.{key}"] = tensor
    write_json(folder / CONFIG, exported.config)
    write_tensors(folder / TENSORS, tensors)


def _obstacles_of(host: Host, adapter: Adapter) -> list[str]:
    return peft_obstacles(adapter.method, host, None if head_copies(adapter) else False)
