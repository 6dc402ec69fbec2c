"""One file with the LoRAs of a pipeline: written as diffusers does, read in any dialect, strictly."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from deltatune.core.adapter import Adapter
from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.host import Host
from deltatune.core.input_validation.strict_json import dumps, loads
from deltatune.core.sites.denoisers import is_denoiser, is_unread
from deltatune.core.sites.site import Site
from deltatune.store.atomic_files import plain_write_errors
from deltatune.store.peft.peft_config import check_config, matching
from deltatune.store.peft.peft_format import PeftFolder
from deltatune.store.peft.peft_lora import LoRAFormat, check_lora_options, imported_lora
from deltatune.store.peft.pipelines.lora_keys import COMPONENTS, first_code_names, module_names, read_key
from deltatune.store.stored_adapter import StoredAdapter
from deltatune.store.tensors import opened_tensors

FILE = "pytorch_lora_weights.safetensors"
METADATA = "lora_adapter_metadata"
"""Key of the file's header under which diffusers keeps PEFT's configs, as JSON with `unet.r` for a component's `r`."""
_METHODS = ("LoRA", "RsLoRA", "DoRA", "PiSSA")
"""Methods that such a file can hold."""
Parts = dict[str, dict[str, Tensor]]
"""Factors A, B, m and alpha by module."""


# ---- which part of a pipeline a model is


def component_of(model: nn.Module) -> str | None:
    """The name of a model in pipelines; None for text encoders, of which there may be several, and other models."""
    if not is_denoiser(model) or "Autoencoder" in type(model).__name__:
        return None
    return "unet" if "UNet" in type(model).__name__ else "transformer"


# ---- writing


def obstacles(host: Host, adapter: Adapter) -> list[str]:
    """Why diffusers' LoRA format cannot hold an adapter. Empty if it can."""
    name = type(adapter.method).__name__
    if name not in _METHODS:
        return [f"diffusers' format holds {', '.join(_METHODS)}, not {adapter.method!r}; host.save keeps it in ours"]
    return LoRAFormat().obstacles(adapter.method, host, ())


def write_diffusers(host: Host, adapter: Adapter, folder: Path) -> None:
    """Write a denoiser's adapter as diffusers' file into a folder beside ours, if that format can hold it."""
    component = component_of(host.model)
    if component is not None and not obstacles(host, adapter):
        write_components(folder / FILE, {component: (host, adapter)})


def write_components(path: Path, adapters: Mapping[str, tuple[Host, Adapter]]) -> None:
    """Write the adapters of a pipeline's components as one file.

    The scale is multiplied into B, so that alpha is the rank: programs that read no alpha compute the same.
    """
    tensors: dict[str, Tensor] = {}
    configs: dict[str, Any] = {}
    for component, (host, adapter) in adapters.items():
        parts, use_dora = _scaled_factors(host, adapter)
        outer = "text_model." if component.startswith("text") and _lacks_text_model(host.model) else ""
        ranks = {module: len(factors["lora_A.weight"]) for module, factors in parts.items()}
        r = Counter(ranks.values()).most_common(1)[0][0]
        level = "(text_model\\.)?" if outer else ""  # whichever transformers reads it
        others = {f"^{level}{re.escape(module)}": rank for module, rank in ranks.items() if rank != r}
        config = {
            "r": r, "lora_alpha": r, "rank_pattern": others, "alpha_pattern": others, "use_dora": use_dora,
            "lora_bias": False, "target_modules": sorted(ranks),
        }  # fmt: skip
        configs |= {f"{component}.{key}": value for key, value in config.items()}
        for module, factors in parts.items():
            tensors |= {f"{component}.{outer}{module}.{name}": tensor for name, tensor in factors.items()}
    contiguous = {key: tensor.detach().contiguous().cpu() for key, tensor in tensors.items()}
    size = sum(tensor.numel() * tensor.element_size() for tensor in contiguous.values())
    with plain_write_errors(path, size):
        save_file(contiguous, path, metadata={"format": "pt", METADATA: dumps(configs, path, sort_keys=True)})


def _lacks_text_model(model: nn.Module) -> bool:
    """Whether a text encoder of CLIP is of transformers 5, which left a level out: files keep it."""
    return "CLIPText" in type(model).__name__ and not hasattr(model, "text_model")


def _scaled_factors(host: Host, adapter: Adapter) -> tuple[Parts, bool]:
    """PEFT's tensors by module, with each module's scale in B, and whether they are DoRA's."""
    exported = LoRAFormat().write(host, adapter)
    parts: Parts = {}
    for key, tensor in exported.tensors.items():
        module, end = re.fullmatch(r"(.+)\.(lora_\w+(?:\.weight)?)", key).groups()  # type: ignore[union-attr]
        parts.setdefault(module, {})[end] = tensor
    for module, scale in exported.scales.items():
        parts[module]["lora_B.weight"] = parts[module]["lora_B.weight"] * scale
    return parts, bool(exported.config.get("use_dora"))


# ---- reading


def knows(place: Path) -> bool:
    """Whether a place is a file of tensors, or a folder with diffusers' file."""
    return (place.is_file() and place.suffix == ".safetensors") or os.path.lexists(place / FILE)


def load(host: Host, place: Path, name: str, other_base: bool, head: nn.Module | None) -> None:
    """Attach the LoRA of a file to a host. Raises DeltatuneError listing all that does not fit."""
    file = read_file(place)
    if component_of(host.model) is None and len(file.texts) > 1:
        raise DeltatuneError(f"{file.path} holds LoRAs of {' and '.join(file.texts)}; load it with {HOW}")
    component = component_of(host.model) or next(iter(file.texts), "text_encoder")
    others = sorted({*file.parts} - {component, *(["denoiser"] if component_of(host.model) else [])})
    if others:
        raise DeltatuneError(
            f"{file.path} also holds LoRAs of {', '.join(others)}, which this {host.sites.facts.architecture} is not; "
            f"load it with {HOW}"
        )
    file.attach(host, component, name)


HOW = "deltatune.PipelineHosts(pipe).load(...)"


@dataclass(frozen=True)
class LoRAFile:
    """The tensors of a file by component and module, and what its header says."""

    path: Path
    parts: Mapping[str, Parts]
    """By component; `denoiser` where the names do not say which."""
    flat: bool
    """Whether modules have `_` for every dot (kohya's files)."""
    configs: Mapping[str, Any]

    @property
    def texts(self) -> list[str]:
        """The text encoders that it has LoRAs for."""
        return [component for component in self.parts if component.startswith("text")]

    def attach(self, host: Host, component: str, name: str) -> Adapter:
        """Attach one component's LoRA to its host."""
        parts = {**self.parts.get(component, {}), **self.parts.get("denoiser" * (component in COMPONENTS[:2]), {})}
        modules, problems = self._by_path(host, parts)
        config = {
            key.removeprefix(component + "."): value
            for key, value in self.configs.items()
            if key.startswith(component + ".")
        }
        sites = {site.module: site for site in host.sites.values() if site.kind == "linear" and site.slice is None}
        problems += [f"it adapts {path}, which is no site of this {host.sites.facts.architecture}"
                     for path in modules if path not in sites]  # fmt: skip
        for path, factors in modules.items():
            problems += _incomplete(path, factors)
        folder = PeftFolder(str(self.path), {"peft_type": "LORA", **config}, {})
        check_config(folder)
        check_lora_options(folder)
        if not modules and not problems:
            problems.append(f"it has no LoRA for the {component}; it has: {', '.join(self.parts) or 'none'}")
        raise_all(problems[:12], f"the LoRA {self.path} does not fit this model:" if problems else "")
        return self._attach(host, name, modules, sites, config)

    def _attach(
        self, host: Host, name: str, modules: Parts, sites: Mapping[str, Site], config: Mapping[str, Any]
    ) -> Adapter:
        dora = any("m" in factors for factors in modules.values())
        scales = {path: _scale(path, factors, config) for path, factors in modules.items()}
        tensors = {path: {n: t for n, t in factors.items() if n != "alpha"} for path, factors in modules.items()}
        method, ours = imported_lora("DoRA" if dora else "LoRA", 1.0, tensors, scales, sites, {})
        origin = {"format": "kohya" if self.flat else "diffusers"}
        return StoredAdapter(self.path, method, ours, extra={"origin": origin}, kind="the LoRA").attach_to(host, name)

    def _by_path(self, host: Host, parts: Parts) -> tuple[Parts, list[str]]:
        """The tensors by module paths of a model, and what has no place in it."""
        names = module_names(host.model)
        names = {**(first_code_names(host.model, names) if self.flat else {}), **names}
        modules: Parts = {}
        problems = []
        for module, factors in parts.items():
            path = names.get(module)
            if path is None:
                problems.append(f"it adapts {module}, and this {host.sites.facts.architecture} has no such module")
            elif not is_unread(host.model, path):  # what has no effect there is left out
                modules[path] = factors
        return modules, problems


def _incomplete(path: str, factors: Mapping[str, Tensor]) -> list[str]:
    """What is wrong with the tensors of one module, their shapes in the model aside."""
    missing = [factor for factor in ("A", "B") if factor not in factors]
    if missing:
        return [f"{path} has no {' and no '.join(missing)}"]
    a, b = factors["A"], factors["B"]
    if a.dim() != 2 or b.dim() != 2 or not len(a) or len(a) != b.shape[1]:
        return [f"{path} has A of shape {tuple(a.shape)} and B of shape {tuple(b.shape)}, which have no common rank"]
    alpha = factors.get("alpha", torch.ones(1))
    return [] if alpha.numel() == 1 and bool(alpha.isfinite()) else [f"{path} has no number as alpha"]


def _scale(path: str, factors: Mapping[str, Tensor], config: Mapping[str, Any]) -> float:
    """A module's scale: its own alpha over its rank, else as the header says, else 1."""
    rank = len(factors["A"])
    if "alpha" in factors:
        return float(factors["alpha"]) / rank
    if "lora_alpha" not in config:
        return 1.0
    patterns = config.get("alpha_pattern") or {}
    named = next((patterns[key] for key in (f"^{re.escape(path)}", f"^{path}", path) if key in patterns), None)
    alpha = float(matching(patterns, path, config["lora_alpha"]) if named is None else named)
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def read_file(place: Path) -> LoRAFile:
    """Read a file of LoRAs, or that in a folder. Raises DeltatuneError for names and values without a meaning here."""
    path = place / FILE if place.is_dir() else place
    with opened_tensors(path) as file:
        metadata = (file.metadata() or {}).get(METADATA)
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    parts: dict[str, Parts] = {}
    flat, problems = False, []
    for key, tensor in tensors.items():
        meaning = read_key(key)
        if isinstance(meaning, str):
            problems.append(meaning)
            continue
        flat = flat or meaning.flat
        value = tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
        if meaning.factor != "alpha" and value.dim() > 2:  # of a convolution: (r, in, kh, kw), (out, r, 1, 1)
            value = value.flatten(0 if meaning.factor == "m" else 1)
        of_module = parts.setdefault(meaning.component, {}).setdefault(meaning.module, {})
        if meaning.factor in of_module:
            problems.append(f"{key} is there a second time under another name")
        of_module[meaning.factor] = value
    if not tensors:
        problems.append("it has no tensors")
    raise_all(problems[:12], f"cannot read the LoRA {path}:" if problems else "")
    configs = loads(metadata, path) if metadata else {}
    if not isinstance(configs, dict):
        raise DeltatuneError(f"cannot read the LoRA {path}: {METADATA} in its header is no object")
    return LoRAFile(path, parts, flat, configs)
