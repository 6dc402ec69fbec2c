"""LoHa and LoKr as PEFT's types LOHA and LOKR, with a rank and an alpha for each module."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

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
from deltatune.store.peft.peft_lora import rank_config
from deltatune.store.peft.peft_modules import (
    common_scale,
    conv1d_obstacles,
    ranks_option,
    read_modules,
    slice_obstacles,
)

_HADAMARD = {".hada_w1_a": "B1", ".hada_w1_b": "A1", ".hada_w2_a": "B2", ".hada_w2_b": "A2"}
_KRONECKER = {
    ".lokr_w1": "first.W", ".lokr_w1_a": "first.B", ".lokr_w1_b": "first.A",
    ".lokr_w2": "second.W", ".lokr_w2_a": "second.B", ".lokr_w2_b": "second.A",
}  # fmt: skip
_KERNELS = (".hada_t1", ".hada_t2", ".lokr_t2")
"""Tensors of convolutions."""


class LoHaFormat:
    """PEFT type LOHA."""

    prefix = MODULE_PREFIX

    def obstacles(self, method: Method, host: Host, heads: Sequence[str]) -> list[str]:
        """PEFT has no form for Conv1D."""
        return conv1d_obstacles(method, host, "LoHa")

    def write(self, host: Host, adapter: Adapter) -> Exported:
        """Convert to config and tensors of type LOHA."""
        modules = deltas_by_module(adapter)
        tensors: dict[str, Tensor] = {}
        pairs: dict[str, tuple[int, float]] = {}
        for path, deltas in modules.items():
            parts, scale = _module_factors(host, deltas)
            tensors |= {path + suffix: parts[name] for suffix, name in _HADAMARD.items()}
            pairs[path] = len(parts["A1"]), scale
        config = rank_config(pairs)
        config["alpha"] = config.pop("lora_alpha")
        return Exported(modules_config(host, "LOHA", adapter, modules) | config, tensors)

    def read(self, host: Host, folder: PeftFolder) -> Imported:
        """Convert to `LoHa` and its factors."""
        _check_kernels(folder)
        modules, sites, used = read_modules(host, folder, _HADAMARD, [set(_HADAMARD.values())])
        ranks = {path: len(parts["A1"]) for path, parts in modules.items()}
        problems = lora_contradictions(folder, ranks, host.sites)
        raise_all(problems[:8], f"the PEFT adapter {folder.path} contradicts itself:" if problems else "")
        r, alpha, shares = common_scale(folder, ranks, "alpha")
        names = tuple(sites[path].name for path in sorted(modules))
        method: Method = registry()["LoHa"](r=r, alpha=alpha, sites=names, **ranks_option(ranks, r, sites))
        tensors = {
            f"loha.{sites[path].name}.{name}": tensor * shares[path] if name == "B1" and shares[path] != 1 else tensor
            for path, parts in modules.items()
            for name, tensor in parts.items()
        }
        return Imported(method, tensors, used)


def _module_factors(host: Host, deltas: Sequence[tuple[Site, Any]]) -> tuple[dict[str, Tensor], float]:
    """The factors of a module and its scale; those of slices side by side, each with zeros at the others' rows."""
    scale = float(deltas[0][1].scale)
    whole = whole_projection(host, deltas[0][0]).width_out
    columns: dict[str, list[Tensor]] = {name: [] for name in _HADAMARD.values()}
    for site, delta in deltas:
        parts = {name: delta.get_parameter(name).detach() for name in columns}
        if site.slice is not None or len(deltas) > 1:
            parts["B1"] = parts["B1"] * (delta.scale / scale)
            for name in ("B1", "B2"):
                parts[name] = put(parts[name].new_zeros(parts[name].shape[1], whole), site.slice, parts[name].T).T
        for name, tensor in parts.items():
            columns[name].append(tensor)
    return {name: torch.cat(each, 0 if name.startswith("A") else 1) for name, each in columns.items()}, scale


class LoKrFormat:
    """PEFT type LOKR: a factor is whole from half of its larger width on, here where that has no more parameters."""

    prefix = MODULE_PREFIX

    def obstacles(self, method: Method, host: Host, heads: Sequence[str]) -> list[str]:
        """PEFT has no form for Conv1D, and none for slices of a module."""
        return conv1d_obstacles(method, host, "LoKr") or slice_obstacles(method, host, "LoKr")

    def write(self, host: Host, adapter: Adapter) -> Exported:
        """Convert to config and tensors of type LOKR."""
        modules = deltas_by_module(adapter)
        fields = hyperparameters(adapter.method)
        tensors: dict[str, Tensor] = {}
        pairs: dict[str, tuple[int, float]] = {}
        for path, deltas in modules.items():
            delta = deltas[0][1]
            factors = {"first": delta.first, "second": delta.second}
            low = [name for name in factors if name == "second" or fields["decompose"] == "both"]
            r = round(fields["alpha"] / delta.scale)
            for name in low:
                # A whole factor is read as whole only from this rank on.
                shape = factors[name]().shape
                if factors[name].W is not None and _is_low_rank(shape, r):
                    r = math.ceil(max(shape) / 2)
            for (name, factor), suffix in zip(factors.items(), (".lokr_w1", ".lokr_w2"), strict=True):
                if name in low and _is_low_rank(factor().shape, r):
                    extra = r - len(factor.A)
                    tensors[path + suffix + "_a"] = F.pad(factor.B.detach(), (0, extra))
                    tensors[path + suffix + "_b"] = F.pad(factor.A.detach(), (0, 0, 0, extra))
                else:
                    tensors[path + suffix] = factor().detach()
            pairs[path] = r, float(delta.scale)
        config = rank_config(pairs)
        config |= {
            "alpha": config.pop("lora_alpha"),
            "decompose_both": fields["decompose"] == "both",
            "decompose_factor": fields["factor"],
            "init_weights": True if fields["init"] == "first" else "lycoris",
        }
        return Exported(modules_config(host, "LOKR", adapter, modules) | config, tensors)

    def read(self, host: Host, folder: PeftFolder) -> Imported:
        """Convert to `LoKr` and its factors; products that have more parameters than their matrix are multiplied."""
        _check_kernels(folder)
        first, second = ([{f"{name}.W"}, {f"{name}.B", f"{name}.A"}] for name in ("first", "second"))
        modules, sites, used = read_modules(host, folder, _KRONECKER, [a | b for a in first for b in second])
        config = folder.config
        told = {path: int(matching(config.get("rank_pattern"), path, config.get("r", 8))) for path in modules}
        ranks = {path: _rank(parts, told[path]) for path, parts in modules.items()}
        problems = lora_contradictions(folder, ranks, host.sites)
        raise_all(problems[:8], f"the PEFT adapter {folder.path} contradicts itself:" if problems else "")
        r, alpha, shares = common_scale(folder, ranks, "alpha")
        method: Method = registry()["LoKr"](
            r=r,
            alpha=alpha,
            factor=int(config.get("decompose_factor", -1)),
            decompose="both" if config.get("decompose_both") else "second",
            init="second" if config.get("init_weights") == "lycoris" else "first",
            sites=tuple(sites[path].name for path in sorted(modules)),
            **ranks_option(ranks, r, sites),
        )
        tensors: dict[str, Tensor] = {}
        for path, parts in modules.items():
            whole = {name for name, _ in method.build(sites[path]).named_parameters() if name.endswith(".W")}
            if shares[path] != 1:
                scaled = "first.W" if "first.W" in parts else "first.B"
                parts[scaled] = parts[scaled] * shares[path]
            for name in ("first", "second"):
                if f"{name}.W" in whole and f"{name}.B" in parts:
                    parts[f"{name}.W"] = parts.pop(f"{name}.B") @ parts.pop(f"{name}.A")
            tensors |= {f"lokr.{sites[path].name}.{name}": tensor for name, tensor in parts.items()}
        return Imported(method, tensors, used)


def _rank(parts: Mapping[str, Tensor], told: int) -> int:
    """The rank of a module: of its products, or the config's where both factors are whole."""
    return next((len(tensor) for name, tensor in parts.items() if name.endswith(".A")), told)


def _is_low_rank(shape: Sequence[int], r: int) -> bool:
    """Whether PEFT stores a factor of this shape as a product of rank r."""
    return r < max(shape) / 2


def _check_kernels(folder: PeftFolder) -> None:
    kernels = [key for key in folder.tensors if key.endswith(_KERNELS)]
    problems = [f"{key} belongs to a convolution, which is not a site here" for key in kernels]
    raise_all(problems[:4], f"the PEFT adapter {folder.path} does not fit this model:" if problems else "")
