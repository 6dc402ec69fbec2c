"""(IA)³ as PEFT's type IA3: one vector a module, of its output (`ia3_l` (out, 1)) or of its input (1, in)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

root = ROOT
KEY = ".ia3_l"


def obstacles(method: Method, host: Host, heads: Sequence[str]) -> list[str]:
    """PEFT has one vector a module: of its output or of its input."""
    sides: dict[str, set[bool]] = {}
    for site in method.pick(host.sites):
        sides.setdefault(site.module, set()).add(site.kind == "input")
    return [
        f"{path} is scaled at its input and at its output, and PEFT has one vector a module"
        for path, both in sides.items()
        if len(both) > 1
    ]


def write(host: Host, adapter: Adapter) -> Theirs:
    """Config and tensors of type IA3."""
    modules = by_module(adapter)
    inputs = sorted(path for path, parts in modules.items() if parts[0][0].kind == "input")
    tensors = {path + KEY: _vector(host, parts) for path, parts in modules.items()}
    config = modules_config(host, "IA3", adapter, modules) | {"feedforward_modules": inputs}
    return Theirs(config, tensors)


def _vector(host: Host, parts: Sequence[tuple[Site, Any]]) -> Tensor:
    """l of a whole module; 1 where none of its parts is scaled. Changes at one place add up."""
    site, delta = parts[0]
    first: Tensor = delta.l.detach()
    if site.kind == "input":
        return first.unsqueeze(0)  # (1, in); one site names a module's input
    if site.slice is None and len(parts) == 1:
        return first.unsqueeze(1)  # (out, 1)
    change = first.new_zeros(whole_of(host, site).width_out)
    for site, delta in parts:
        change = change + put(torch.zeros_like(change), site.slice, delta.l.detach() - 1)
    return (1 + change).unsqueeze(1)


def read(host: Host, foreign: Foreign) -> Ours:
    """An `IA3` and its vectors: (1, in) are of inputs, (out, 1) of outputs."""
    found = {key.removesuffix(KEY): vector for key, vector in foreign.tensors.items() if key.endswith(KEY)}
    outputs = {s.module: s for s in host.sites.values() if s.kind == "linear" and s.slice is None}
    inputs = {s.module: s for s in host.sites.values() if s.kind == "input"}
    tensors, named, problems = {}, [], []
    for path, vector in found.items():
        places: Mapping[str, Site] = inputs if vector.shape[0] == 1 else outputs
        if path in places:
            named.append(places[path].name)
            tensors[f"ia3.{places[path].name}.l"] = vector.flatten()
        else:
            side = "input" if places is inputs else "output"
            problems.append(
                f"it scales the {side} of {path}, which is no site of this {host.sites.facts.architecture}; "
                "IA3 knows outputs of linear maps and inputs of the last maps of FFN and attention"
            )
    if not found:
        problems.append(f"it holds no vector {KEY.strip('.')}")
    raise_all(problems[:8], f"the PEFT adapter {foreign.place} does not fit this model:" if problems else "")
    method: Method = registry()["IA3"](sites=tuple(sorted(named)))
    return Ours(method, tensors, {path + KEY for path in found})
