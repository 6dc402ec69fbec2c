"""PEFT types with tensors for each module: which tensors a folder has for which module, and what does not fit."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from deltatune.core.errors import raise_all
from deltatune.core.host import Host
from deltatune.core.method import Method
from deltatune.core.sites.site import Site
from deltatune.store.peft.peft_config import matching
from deltatune.store.peft.peft_format import PeftFolder


def read_modules(
    host: Host, folder: PeftFolder, suffixes: Mapping[str, str], wanted: Iterable[set[str]], kind: str = "linear"
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Site], set[str]]:
    """The tensors of each module by our names, the site of each module, and the names of the tensors that were read.

    suffixes: how PEFT's tensors end, and our names; wanted: sets of our names of which each module must have one.
    Raises DeltatuneError for modules that are no sites of a kind, and for tensors that are missing.
    """
    modules: dict[str, dict[str, Tensor]] = {}
    used = set()
    for key, tensor in folder.tensors.items():
        for suffix, name in suffixes.items():
            if key.endswith(suffix):
                modules.setdefault(key.removesuffix(suffix), {})[name] = tensor
                used.add(key)
    sites = {site.module: site for site in host.sites.values() if site.kind == kind and site.slice is None}
    problems = [
        f"it adapts {path}, which is not a {kind} site of this {host.sites.facts.architecture}"
        for path in modules
        if path not in sites
    ]
    theirs = {name: suffix.strip(".") for suffix, name in suffixes.items()}
    possible = list(wanted)
    for path, parts in modules.items():
        if path in sites and parts.keys() not in possible:
            have = ", ".join(sorted(theirs[name] for name in parts))
            need = " or ".join(", ".join(sorted(theirs[name] for name in names)) for names in possible)
            problems.append(f"{path} has tensors {have}; required are {need}")
    if not modules:
        problems.append(f"it has no tensors {', '.join(sorted(theirs.values()))}")
    config = folder.config
    if config.get("bias", "none") not in ("none", None):
        problems.append(f"bias={config['bias']!r} also changed the base's biases")
    raise_all(problems[:8], f"the PEFT adapter {folder.path} does not fit this model:" if problems else "")
    return modules, sites, used


def common_scale(folder: PeftFolder, ranks: Mapping[str, int], alpha: str) -> tuple[int, float, dict[str, float]]:
    """The rank and alpha that most modules have, and for each module what its own scale is of alpha / its rank."""
    scales = {
        path: float(matching(folder.config.get("alpha_pattern"), path, folder.config.get(alpha, 8))) / rank
        for path, rank in ranks.items()
    }
    r, scale = Counter((ranks[path], scales[path]) for path in ranks).most_common(1)[0][0]
    common = scale * r
    shares = {path: scales[path] / (common / ranks[path]) for path in ranks}
    return r, common, {path: 1.0 if math.isclose(share, 1, rel_tol=1e-12) else share for path, share in shares.items()}


def ranks_option(ranks: Mapping[str, int], r: int, sites: Mapping[str, Site]) -> dict[str, Any]:
    """The field `ranks` of a method: modules whose rank is not r."""
    other = tuple((sites[path].name, rank) for path, rank in ranks.items() if rank != r)
    return {"ranks": other} if other else {}


def conv1d_obstacles(method: Method, host: Host, peft_name: str) -> list[str]:
    """Reasons why a PEFT type without a form for transformers' Conv1D (GPT-2's maps) cannot hold a method."""
    modules = dict.fromkeys(site.module for site in method.pick(host.sites) if site.transposed)
    return [
        f"{path} is a Conv1D, which PEFT's {peft_name} does not take; it has a form for nn.Linear" for path in modules
    ][:4]


def slice_obstacles(method: Method, host: Host, peft_name: str) -> list[str]:
    """Reasons why a PEFT type that changes whole modules cannot hold a method: slices of fused projections."""
    sliced: Sequence[Site] = [site for site in method.pick(host.sites) if site.slice is not None]
    return [
        f"{site.name} is a slice of {site.module}, which PEFT's {peft_name} changes as a whole; use sites='*.attn.qkv'"
        for site in sliced
    ][:4]
