"""Reading PEFT's type LORA: LoRA, rsLoRA, DoRA and converted PiSSA, with a rank and an alpha for each module."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deltatune.core.adapter import Adapter
from deltatune.core.errors import raise_all
from deltatune.core.host import Host
from deltatune.core.method import Method
from deltatune.core.registry import registry
from deltatune.core.sites.fused_projections import put
from deltatune.core.sites.site import Site
from deltatune.store.peft.peft_files import ROOT, Foreign, Ours, Theirs, by_module, modules_config, whole_of

_MUST_BE_OFF = (
    "lora_bias", "target_parameters", "trainable_token_indices", "layer_replication", "use_qalora",
    "alora_invocation_tokens", "arrow_config", "megatron_config", "use_bdlora", "kasa_config", "velora_config",
)  # fmt: skip
_INIT_AS_LORA = (True, False, "gaussian", "eva", "orthogonal", None)
_SUFFIXES = {
    ".lora_A.weight": "A",
    ".lora_B.weight": "B",
    ".lora_embedding_A": "A",
    ".lora_embedding_B": "B",
    ".lora_magnitude_vector": "m",
}


def read(host: Host, foreign: Foreign) -> Ours:
    """The method and its tensors."""
    _refuse(foreign)
    found: dict[str, dict[str, Tensor]] = {}
    used = set()
    for key, tensor in foreign.tensors.items():
        for suffix, name in _SUFFIXES.items():
            if key.endswith(suffix):
                found.setdefault(key.removesuffix(suffix), {})[name] = tensor
                used.add(key)
    sites = _sites(host, foreign, found)
    ranks = {path: len(parts["A"]) for path, parts in found.items()}
    theirs = {path: _scale(foreign, path, rank) for path, rank in ranks.items()}
    r, scale = Counter((ranks[path], theirs[path]) for path in found).most_common(1)[0][0]
    label, power = _class(foreign)
    alpha = scale * r**power
    tensors = {}
    for path, parts in found.items():
        here = alpha / ranks[path] ** power
        for name, tensor in parts.items():  # where this module has an alpha of its own, B takes the difference in
            other = name == "B" and not math.isclose(here, theirs[path], rel_tol=1e-12)
            tensors[f"{label.lower()}.{sites[path].name}.{name}"] = tensor * (theirs[path] / here) if other else tensor
    options: dict[str, Any] = {"r": r, "alpha": alpha, "dropout": float(foreign.config.get("lora_dropout", 0.0))}
    if odd := tuple((sites[path].name, rank) for path, rank in ranks.items() if rank != r):
        options["ranks"] = odd
    named = tuple(sites[path].name for path in sorted(found))
    method: Method = registry()[label](sites=named, **options)
    return Ours(method, tensors, used)


def _refuse(foreign: Foreign) -> None:
    config = foreign.config
    problems = [f"option {key} is on" for key in _MUST_BE_OFF if config.get(key)]
    if config.get("bias", "none") != "none":
        problems.append(f"bias={config['bias']!r} also changed the base's biases")
    if config.get("init_lora_weights", True) not in _INIT_AS_LORA:
        problems.append(
            f"init_lora_weights={config['init_lora_weights']!r} changed the base's weights; convert it with PEFT first "
            "(save_pretrained with path_initial_model_for_weight_conversion)"
        )
    raise_all(problems, f"cannot read the PEFT adapter {foreign.place}:" if problems else "")


def _sites(host: Host, foreign: Foreign, found: dict[str, dict[str, Tensor]]) -> dict[str, Site]:
    """Site of each module path."""
    known = {site.module: site for site in host.sites.values() if site.kind in ("linear", "embed") and not site.slice}
    lost = [path for path in found if path not in known]
    problems = [f"it adapts {path}, which is no linear site of this {host.sites.facts.architecture}" for path in lost]
    for path, parts in found.items():
        wanted = {"A", "B", "m"} if foreign.config.get("use_dora") else {"A", "B"}
        if path in known and parts.keys() != wanted:
            problems.append(f"{path} has tensors {', '.join(sorted(parts))}, {', '.join(sorted(wanted))} are needed")
    if not found:
        problems.append("it holds no pair lora_A, lora_B")
    raise_all(problems[:8], f"the PEFT adapter {foreign.place} does not fit this model:" if problems else "")
    return known


def _class(foreign: Foreign) -> tuple[str, float]:
    """Our class, and the power of the rank by which it divides alpha."""
    if foreign.config.get("use_dora"):
        return "DoRA", 1.0
    return ("RsLoRA", 0.5) if foreign.config.get("use_rslora") else ("LoRA", 1.0)


def _scale(foreign: Foreign, path: str, rank: int) -> float:
    """What PEFT multiplies a module's BA by; the first pattern that names the module gives its alpha."""
    alpha = foreign.config.get("lora_alpha", 8)
    for pattern, value in (foreign.config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", path):
            alpha = value
            break
    return float(alpha) / (math.sqrt(rank) if foreign.config.get("use_rslora") else rank)


root = ROOT
MAGNITUDE = ".lora_magnitude_vector"


def obstacles(method: Method, host: Host, heads: Sequence[str]) -> list[str]:
    """DoRA needs one magnitude a row, so it cannot act on a fused projection and on its part at once."""
    if type(method).__name__ != "DoRA":
        return []
    whole = {site.module for site in method.pick(host.sites) if site.slice is None}
    parts = [site for site in method.pick(host.sites) if site.slice is not None]
    if any(hasattr(host.model.get_submodule(site.module).weight, "full_tensor") for site in parts):
        return [
            f"the norms of {parts[0].module}, of which only a part is changed, cannot be read while FSDP spreads the "
            "base over processes; load the adapter in one process and save it again"
        ]
    return [
        f"{site.name} is a part of {site.module}, which DoRA changes as a whole too"
        for site in method.pick(host.sites)
        if site.slice is not None and site.module in whole
    ]


def write(host: Host, adapter: Adapter) -> Theirs:
    """Config and tensors of type LORA."""
    modules = by_module(adapter)
    tensors: dict[str, Tensor] = {}
    pairs: dict[str, tuple[int, float]] = {}
    for path, parts in modules.items():
        a, b, scale = _pair(host, parts)
        middle = ".lora_embedding_{}" if parts[0][0].kind == "embed" else ".lora_{}.weight"
        tensors[path + middle.format("A")], tensors[path + middle.format("B")] = a, b
        pairs[path] = (a.shape[0], scale)
        if hasattr(parts[0][1], "m"):
            tensors[path + MAGNITUDE] = _magnitude(parts)
    config = modules_config(host, "LORA", adapter, modules)
    config |= {"bias": "none", "lora_dropout": float(getattr(adapter.method, "dropout", 0.0)), **_sizes(pairs)}
    if any(key.endswith(MAGNITUDE) for key in tensors):
        config["use_dora"] = True
    return Theirs(config, tensors)


def _sizes(pairs: dict[str, tuple[int, float]]) -> dict[str, Any]:
    """Rank and alpha that most modules have, and patterns for the others; PEFT's scale is alpha / rank."""
    r, scale = Counter(pairs.values()).most_common(1)[0][0]
    return {
        "r": r,
        "lora_alpha": scale * r,
        "rank_pattern": {re.escape(path): rank for path, (rank, _) in pairs.items() if rank != r},
        "alpha_pattern": {re.escape(path): s * rank for path, (rank, s) in pairs.items() if s * rank != scale * r},
    }


def factors(delta: Any) -> tuple[Tensor, Tensor, float]:
    """(A, B, s) of a low-rank Delta, so that its change of the weight is s·BA; PiSSA's of rank 2r."""
    made = hasattr(delta, "down")
    a, b = (delta.down(), delta.up()) if made else (delta.A, delta.B)
    return a.detach(), b.detach(), float(delta.scale)


def _pair(host: Host, parts: Sequence[tuple[Site, Any]]) -> tuple[Tensor, Tensor, float]:
    """One (A, B, s) for a module: A (sum of ranks, in), B (out, sum of ranks)."""
    if parts[0][0].slice is None and len(parts) == 1:
        return factors(parts[0][1])
    whole = whole_of(host, parts[0][0]).width_out
    downs, ups, scale = [], [], float(parts[0][1].scale)
    for site, delta in parts:
        a, b, s = factors(delta)
        downs.append(a)
        ups.append(put(b.new_zeros(b.shape[1], whole), site.slice, b.T * (s / scale)).T)
    return torch.cat(downs), torch.cat(ups, 1), scale


def _magnitude(parts: Sequence[tuple[Site, Any]]) -> Tensor:
    """DoRA's m (out,) of a module; rows that no part changes keep the norms that they have."""
    site, delta = parts[0]
    m: Tensor = delta.m.detach()
    if site.slice is None:
        return m
    weight: Tensor = delta.base.stored()["weight"].detach().float()
    m = weight.norm(dim=0 if site.transposed else 1)
    for site, delta in parts:
        m = put(m, site.slice, delta.m.detach().to(m))
    return m
