"""LoRA, rsLoRA, DoRA and PiSSA as PEFT's type LORA, with a rank and an alpha for each module."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from deltatune.core.adapter import Adapter
from deltatune.core.errors import raise_all
from deltatune.core.host import Host
from deltatune.core.method import Method, hyperparameters
from deltatune.core.registry import registry
from deltatune.core.sites.fused_projections import put
from deltatune.core.sites.site import Site
from deltatune.store.peft.peft_config import lora_contradictions, matching
from deltatune.store.peft.peft_format import (
    MODULE_PREFIX,
    Exported,
    Imported,
    PeftFolder,
    deltas_by_module,
    modules_config,
    whole_projection,
)

_UNSUPPORTED = (
    "lora_bias", "target_parameters", "trainable_token_indices", "layer_replication", "use_qalora",
    "alora_invocation_tokens", "arrow_config", "megatron_config", "use_bdlora", "kasa_config", "velora_config",
)  # fmt: skip
"""PEFT options that change what the adapter computes."""
_INIT_AS_LORA = (True, False, "gaussian", "eva", "orthogonal", None)
"""Initial values that leave the base's weights unchanged."""
_SUFFIXES = {
    ".lora_A.weight": "A",
    ".lora_B.weight": "B",
    ".lora_embedding_A": "A",
    ".lora_embedding_B": "B",
    ".lora_magnitude_vector": "m",
    ".lora_magnitude_vector.weight": "m",
}
MAGNITUDE = ".lora_magnitude_vector.weight"
"""PEFT reads the name that it writes, without `.weight`, and this one; transformers 5.23 finds only this one."""


class LoRAFormat:
    """PEFT type LORA, for LoRA, RsLoRA, DoRA and PiSSA."""

    prefix = MODULE_PREFIX

    def obstacles(self, method: Method, host: Host, heads: Sequence[str]) -> list[str]:
        """DoRA has one magnitude per row, so it cannot act on a fused projection and on its slice at once."""
        if type(method).__name__ != "DoRA":
            return []
        whole_modules = {site.module for site in method.pick(host.sites) if site.slice is None}
        slices = [site for site in method.pick(host.sites) if site.slice is not None]
        if any(hasattr(host.model.get_submodule(site.module).weight, "full_tensor") for site in slices):
            return [
                f"the norms of {slices[0].module}, of which only a slice is changed, cannot be read while the base is "
                "sharded (FSDP); load the adapter in one process and save it again"
            ]
        return [
            f"{site.name} is a slice of {site.module}, which DoRA also changes as a whole"
            for site in slices
            if site.module in whole_modules
        ]

    def write(self, host: Host, adapter: Adapter) -> Exported:
        """Convert to config and tensors of type LORA."""
        modules = deltas_by_module(adapter)
        tensors: dict[str, Tensor] = {}
        pairs: dict[str, tuple[int, float]] = {}
        for path, deltas in modules.items():
            a, b, scale = _module_factors(host, deltas)
            suffix = ".lora_embedding_{}" if deltas[0][0].kind == "embed" else ".lora_{}.weight"
            tensors[path + suffix.format("A")], tensors[path + suffix.format("B")] = _filters(deltas[0][0], a, b)
            pairs[path] = (a.shape[0], scale)
            if "m" in dict(deltas[0][1].named_parameters()):
                m, kernel = _magnitude(deltas), deltas[0][0].kernel
                tensors[path + MAGNITUDE] = m if kernel is None else m[None, :, None, None]
        config = modules_config(host, "LORA", adapter, modules)
        config |= {
            "bias": "none",
            "lora_dropout": float(hyperparameters(adapter.method).get("dropout", 0.0)),
            "init_lora_weights": "gaussian" if hyperparameters(adapter.method).get("init") == "gaussian" else True,
            **rank_config(pairs),
        }
        if any(key.endswith(MAGNITUDE) for key in tensors):
            config["use_dora"] = True
        return Exported(config, tensors, scales={path: scale for path, (_, scale) in pairs.items()})

    def read(self, host: Host, folder: PeftFolder) -> Imported:
        """Convert to LoRA, RsLoRA or DoRA and its tensors."""
        check_lora_options(folder)
        modules: dict[str, dict[str, Tensor]] = {}
        used = set()
        for key, tensor in folder.tensors.items():
            for suffix, factor in _SUFFIXES.items():
                if key.endswith(suffix):
                    # a convolution's A is (r, in, kh, kw) and its B (out, r, 1, 1)
                    flat = tensor.flatten(0 if factor == "m" else 1) if tensor.dim() > 2 else tensor
                    modules.setdefault(key.removesuffix(suffix), {})[factor] = flat
                    used.add(key)
        sites = _sites(host, folder, modules)
        ranks = {path: len(parts["A"]) for path, parts in modules.items()}
        problems = lora_contradictions(folder, ranks, host.sites)
        raise_all(problems[:8], f"the PEFT adapter {folder.path} contradicts itself:" if problems else "")
        scales = {path: _scale(folder, path, rank) for path, rank in ranks.items()}
        options: dict[str, Any] = {"dropout": float(folder.config.get("lora_dropout", 0.0))}
        if folder.config.get("init_lora_weights") == "gaussian":
            options["init"] = "gaussian"
        method, tensors = imported_lora(*_method_name(folder), modules, scales, sites, options)
        return Imported(method, tensors, used)


def imported_lora(
    name: str,
    power: float,
    modules: Mapping[str, Mapping[str, Tensor]],
    scales: Mapping[str, float],
    sites: Mapping[str, Site],
    options: Mapping[str, Any],
) -> tuple[Method, dict[str, Tensor]]:
    """A LoRA whose modules have factors A (r, in), B (out, r) and scales of their own, as a method and its tensors.

    `name` of the method, and the power of the rank by which it divides alpha; `sites` of the modules.
    """
    ranks = {path: len(parts["A"]) for path, parts in modules.items()}
    effective = [path for path in modules if scales[path]] or list(modules)  # of alpha 0 nothing can be made in B
    r, scale = Counter((ranks[path], scales[path]) for path in effective).most_common(1)[0][0]
    alpha = scale * r**power
    same = len(set(ranks.values())) > 1 and all(math.isclose(s, scale, rel_tol=1e-12) for s in scales.values())
    tensors = {}
    for path, parts in modules.items():
        scale_here = alpha / (r if same else ranks[path]) ** power
        for factor, tensor in parts.items():
            if factor == "B" and not math.isclose(scale_here, scales[path], rel_tol=1e-12):
                tensor = tensor * (scales[path] / scale_here)  # a module with another alpha: B takes the difference
            tensors[f"{name.lower()}.{sites[path].name}.{factor}"] = tensor
    given: dict[str, Any] = {"r": r, "alpha": alpha, **options}
    if exceptions := tuple((sites[path].name, rank) for path, rank in ranks.items() if rank != r):
        given["ranks"] = exceptions
    if same:
        given["scaling"] = "r"
    site_names = tuple(sites[path].name for path in sorted(modules))
    method: Method = registry()[name](sites=site_names, **given)
    return method, tensors


def check_lora_options(folder: PeftFolder) -> None:
    """Raise DeltatuneError for options that change what the adapter computes."""
    config = folder.config
    problems = [f"option {key} is not supported" for key in _UNSUPPORTED if config.get(key)]
    if config.get("bias", "none") != "none":
        problems.append(f"bias={config['bias']!r} also changed the base's biases")
    if config.get("init_lora_weights", True) not in _INIT_AS_LORA:
        problems.append(
            f"init_lora_weights={config['init_lora_weights']!r} changed the base's weights; convert it with PEFT first "
            "(save_pretrained with path_initial_model_for_weight_conversion)"
        )
    raise_all(problems, f"cannot read the PEFT adapter {folder.path}:" if problems else "")


def _sites(host: Host, folder: PeftFolder, modules: dict[str, dict[str, Tensor]]) -> dict[str, Site]:
    """Return the site of each module path. Raises DeltatuneError for modules and tensors that do not fit."""
    sites = {site.module: site for site in host.sites.values() if site.kind in ("linear", "embed") and not site.slice}
    architecture = host.sites.facts.architecture
    unknown = [path for path in modules if path not in sites]
    problems = [f"it adapts {path}, which is not a linear site of this {architecture}" for path in unknown]
    for path, parts in modules.items():
        required = {"A", "B", "m"} if folder.config.get("use_dora") else {"A", "B"}
        if path in sites and parts.keys() != required:
            problems.append(
                f"{path} has tensors {', '.join(sorted(parts))}, {', '.join(sorted(required))} are required"
            )
    if not modules:
        problems.append("it has no pair lora_A, lora_B")
    raise_all(problems[:8], f"the PEFT adapter {folder.path} does not fit this model:" if problems else "")
    return sites


def _method_name(folder: PeftFolder) -> tuple[str, float]:
    """Return the method, and the power of the rank by which it divides alpha."""
    if folder.config.get("use_dora"):
        return "DoRA", 1.0
    return ("RsLoRA", 0.5) if folder.config.get("use_rslora") else ("LoRA", 1.0)


def _scale(folder: PeftFolder, path: str, rank: int) -> float:
    """The scale of a module's BA in PEFT; the first pattern that matches the module gives its alpha."""
    alpha = matching(folder.config.get("alpha_pattern"), path, folder.config.get("lora_alpha", 8))
    return float(alpha) / (math.sqrt(rank) if folder.config.get("use_rslora") else rank)


def rank_config(pairs: dict[str, tuple[int, float]]) -> dict[str, Any]:
    """The most frequent rank and alpha, and patterns for the other modules; PEFT's scale is alpha / rank."""
    r, scale = Counter(pairs.values()).most_common(1)[0][0]
    return {
        "r": r,
        "lora_alpha": scale * r,
        "rank_pattern": {re.escape(path): rank for path, (rank, _) in pairs.items() if rank != r},
        "alpha_pattern": {re.escape(path): s * rank for path, (rank, s) in pairs.items() if s * rank != scale * r},
    }


def factors(delta: Any) -> tuple[Tensor, Tensor, float]:
    """Return (A, B, s) of a low-rank Delta with ΔW = s·BA; PiSSA's have rank 2r."""
    of_delta: tuple[Tensor, Tensor, float] = delta.low_rank_factors()
    return of_delta


def _module_factors(host: Host, deltas: Sequence[tuple[Site, Any]]) -> tuple[Tensor, Tensor, float]:
    """Return one (A, B, s) for a module: A (sum of ranks, in), B (out, sum of ranks)."""
    if deltas[0][0].slice is None and len(deltas) == 1:
        return factors(deltas[0][1])
    width_out = whole_projection(host, deltas[0][0]).width_out
    downs, ups, scale = [], [], float(deltas[0][1].scale)
    for site, delta in deltas:
        a, b, s = factors(delta)
        downs.append(a)
        ups.append(put(b.new_zeros(b.shape[1], width_out), site.slice, b.T * (s / scale)).T)
    return torch.cat(downs), torch.cat(ups, 1), scale


def _filters(site: Site, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The factors as PEFT has them: of a convolution A (r, in, kh, kw) and B (out, r, 1, 1)."""
    if site.kernel is None:
        return a, b
    return a.reshape(len(a), -1, *site.kernel.size), b[:, :, None, None]


def _magnitude(deltas: Sequence[tuple[Site, Any]]) -> Tensor:
    """Return DoRA's m (out,) of a module; rows without a Delta keep the norms of the base."""
    site, delta = deltas[0]
    m: Tensor = delta.m.detach()
    if site.slice is None:
        return m
    weight: Tensor = delta.base.stored()["weight"].detach().float()
    m = weight.norm(dim=0 if site.transposed else 1)
    for site, delta in deltas:
        m = put(m, site.slice, delta.m.detach().to(m))
    return m
