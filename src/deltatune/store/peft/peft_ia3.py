"""(IA)³ as PEFT's type IA3: one vector per module, for its output (`ia3_l` (out, 1)) or its input (1, in)."""

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
from deltatune.store.peft.peft_format import (
    MODULE_PREFIX,
    Exported,
    Imported,
    PeftFolder,
    deltas_by_module,
    modules_config,
    whole_projection,
)

KEY = ".ia3_l"


class IA3Format:
    """PEFT type IA3."""

    prefix = MODULE_PREFIX

    def obstacles(self, method: Method, host: Host, heads: Sequence[str]) -> list[str]:
        """PEFT has one vector per module, for its output or its input."""
        sides: dict[str, set[bool]] = {}
        for site in method.pick(host.sites):
            sides.setdefault(site.module, set()).add(site.kind == "input")
        return [
            f"{path} is scaled at its input and at its output, and PEFT has one vector per module"
            for path, both in sides.items()
            if len(both) > 1
        ]

    def write(self, host: Host, adapter: Adapter) -> Exported:
        """Convert to config and tensors of type IA3."""
        modules = deltas_by_module(adapter)
        inputs = sorted(path for path, deltas in modules.items() if deltas[0][0].kind == "input")
        tensors = {path + KEY: _vector(host, deltas) for path, deltas in modules.items()}
        config = modules_config(host, "IA3", adapter, modules) | {"feedforward_modules": inputs}
        return Exported(config, tensors)

    def read(self, host: Host, folder: PeftFolder) -> Imported:
        """Convert to `IA3` and its vectors: (1, in) scale inputs, (out, 1) outputs."""
        vectors = {key.removesuffix(KEY): vector for key, vector in folder.tensors.items() if key.endswith(KEY)}
        outputs = {s.module: s for s in host.sites.values() if s.kind == "linear" and s.slice is None}
        inputs = {s.module: s for s in host.sites.values() if s.kind == "input"}
        tensors, names, problems = {}, [], []
        for path, vector in vectors.items():
            sites: Mapping[str, Site] = inputs if vector.shape[0] == 1 else outputs
            if path in sites:
                names.append(sites[path].name)
                tensors[f"ia3.{sites[path].name}.l"] = vector.flatten()
            else:
                side = "input" if sites is inputs else "output"
                problems.append(
                    f"it scales the {side} of {path}, which is not a site of this {host.sites.facts.architecture}; "
                    "IA3 can scale outputs of linear maps and inputs of the last maps of FFN and attention"
                )
        if not vectors:
            problems.append(f"it has no vector {KEY.strip('.')}")
        raise_all(problems[:8], f"the PEFT adapter {folder.path} does not fit this model:" if problems else "")
        method: Method = registry()["IA3"](sites=tuple(sorted(names)))
        return Imported(method, tensors, {path + KEY for path in vectors})


def _vector(host: Host, deltas: Sequence[tuple[Site, Any]]) -> Tensor:
    """Return l of a whole module; 1 for rows without a Delta. Changes of one row add up."""
    site, delta = deltas[0]
    first: Tensor = delta.l.detach()
    if site.kind == "input":
        return first.unsqueeze(0)  # (1, in); a module's input is one site
    if site.slice is None and len(deltas) == 1:
        return first.unsqueeze(1)  # (out, 1)
    change = first.new_zeros(whole_projection(host, site).width_out)
    for site, delta in deltas:
        change = change + put(torch.zeros_like(change), site.slice, delta.l.detach() - 1)
    return (1 + change).unsqueeze(1)
