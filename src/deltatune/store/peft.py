"""Reading a folder that HF PEFT wrote: LoRA in all settings that mean the same here; the rest is refused by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.host import Host
from deltatune.core.method import Method
from deltatune.core.sites import Site
from deltatune.core.text import registry
from deltatune.store.atomic import read_json
from deltatune.store.folder import read_tensors
from deltatune.store.peft_files import CONFIG, ROOT, TENSORS

_MUST_BE_OFF = (
    "use_dora", "lora_bias", "target_parameters", "trainable_token_indices", "layer_replication", "use_qalora",
    "alora_invocation_tokens", "arrow_config", "megatron_config", "use_bdlora", "kasa_config", "velora_config",
)  # fmt: skip
_INIT_AS_LORA = (True, False, "gaussian", "eva", "orthogonal", None)


def save(host: Host, name: str, folder: Path, extra: Mapping[str, Any]) -> None:
    """Not a format of its own to write: our folder of a LoRA adapter holds PEFT's files too."""
    raise DeltatuneError(f"save {name!r} with host.save: a LoRA folder is readable by PEFT as it is")


def knows(folder: Path) -> bool:
    """Whether the folder holds an adapter that PEFT wrote."""
    return (folder / CONFIG).is_file()


def load(host: Host, folder: Path, name: str, other_base: bool, head: nn.Module | None) -> None:
    """Attach a PEFT LoRA adapter, its saved classifier included. One error lists all that does not fit."""
    config = read_json(folder / CONFIG)
    _refuse(config, folder)
    if not (folder / TENSORS).is_file():
        raise DeltatuneError(
            f"{folder} has no {TENSORS}; pickled .bin adapters are not read: save it as safetensors with PEFT"
        )
    tensors = {key.removeprefix(ROOT): tensor for key, tensor in read_tensors(folder / TENSORS).items()}
    paths = sorted({key.partition(".lora_")[0] for key in tensors if ".lora_" in key})
    places, ours = _places(host, paths, tensors, folder)
    method = _method(config, places, tensors, folder)
    adapter = host.attach(name, method, head=None if any(not k.startswith("lora.") for k in ours) else False)
    wanted = adapter.tensors()
    problems = [f"{key} is missing" for key in wanted if key not in ours]
    problems += [f"{key} is in the file but fits nothing here" for key in ours if key not in wanted]
    problems += [
        f"{key} has shape {tuple(ours[key].shape)} in the file, {tuple(wanted[key].shape)} here"
        for key in wanted.keys() & ours.keys()
        if ours[key].shape != wanted[key].shape
    ]
    if problems:
        host.detach(name)
        raise_all(problems, f"the PEFT adapter {folder} does not fit this model:")
    adapter.load_tensors(ours)


def _refuse(config: Mapping[str, Any], folder: Path) -> None:
    problems = []
    if config.get("peft_type") != "LORA":
        problems.append(f"it is a {config.get('peft_type')} adapter; LoRA is what can be read from PEFT")
    problems += [f"option {key} is on" for key in _MUST_BE_OFF if config.get(key)]
    if config.get("bias", "none") != "none":
        problems.append(f"bias={config['bias']!r} also changed the base's biases")
    if config.get("init_lora_weights", True) not in _INIT_AS_LORA:
        problems.append(
            f"init_lora_weights={config['init_lora_weights']!r} changed the base's weights; convert it with PEFT first "
            "(save_pretrained with path_initial_model_for_weight_conversion)"
        )
    raise_all(problems, f"cannot read the PEFT adapter {folder}:" if problems else "")


def _places(
    host: Host, paths: list[str], tensors: Mapping[str, Tensor], folder: Path
) -> tuple[list[Site], dict[str, Tensor]]:
    """The sites of PEFT's module paths, and the tensors under our names."""
    by_module = {site.module: site for site in host.sites.values() if site.kind == "linear" and site.slice is None}
    missing = [path for path in paths if path not in by_module]
    raise_all(
        [f"it adapts {path}, which is no linear site of this {host.sites.facts.architecture}" for path in missing[:8]],
        f"the PEFT adapter {folder} does not fit this model:" if missing else "",
    )
    ours: dict[str, Tensor] = {}
    heads = {site.module: site for site in host.sites.values() if site.kind == "head"}
    for key, tensor in tensors.items():
        path, _, rest = key.partition(".lora_")
        head = next((site for module, site in heads.items() if key.startswith(module + ".")), None)
        if rest:
            ours[f"lora.{by_module[path].name}.{rest.removesuffix('.weight')}"] = tensor
        elif head is not None:
            ours[f"head.{head.name}.module.{key.removeprefix(head.module + '.')}"] = tensor
        else:
            ours[key] = tensor
    return [by_module[path] for path in paths], ours


def _method(config: Mapping[str, Any], places: list[Site], tensors: Mapping[str, Tensor], folder: Path) -> Method:
    ranks = {site.module: tensors[f"{site.module}.lora_A.weight"].shape[0] for site in places}
    if len(set(ranks.values())) != 1 or config.get("alpha_pattern"):
        raise DeltatuneError(
            f"the PEFT adapter {folder} has modules of different rank or alpha, which one LoRA here cannot hold"
        )
    r = next(iter(ranks.values()))
    alpha = float(config.get("lora_alpha", 8))
    scale = alpha / math.sqrt(r) if config.get("use_rslora") else alpha / r
    return registry()["LoRA"](
        r=r, alpha=scale * r, dropout=float(config.get("lora_dropout", 0.0)), sites=tuple(site.name for site in places)
    )
