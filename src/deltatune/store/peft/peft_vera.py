"""VeRA as PEFT's type VERA: two vectors per module, and the random A and B that all modules share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deltatune.core.adapter import Adapter
from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.host import Host
from deltatune.core.method import Method, hyperparameters
from deltatune.core.registry import registry
from deltatune.store.peft.peft_format import (
    MODULE_PREFIX,
    Exported,
    Imported,
    PeftFolder,
    deltas_by_module,
    modules_config,
)

_VECTORS = {".vera_lambda_d": "d", ".vera_lambda_b": "b"}
_SHARED = {"base_model.vera_A": "A", "base_model.vera_B": "B"}


class VeRAFormat:
    """PEFT type VERA."""

    prefix = MODULE_PREFIX

    def obstacles(self, method: Method, host: Host, heads: Sequence[str]) -> list[str]:
        """Here each slice of a fused projection uses the first rows of B; PEFT only adapts whole modules."""
        return [
            f"{site.name} is a slice of {site.module}, which PEFT's VeRA changes as a whole; use sites='*.attn.qkv'"
            for site in method.pick(host.sites)
            if site.slice is not None
        ]

    def write(self, host: Host, adapter: Adapter) -> Exported:
        """Convert to config and tensors of type VERA."""
        modules = deltas_by_module(adapter)
        tensors = {
            path + suffix: deltas[0][1].get_parameter(name).detach()
            for path, deltas in modules.items()
            for suffix, name in _VECTORS.items()
        }
        projection = next(iter(adapter.shared.values()))
        shared = {key: projection.get_buffer(name) for key, name in _SHARED.items()}
        config = modules_config(host, "VERA", adapter, modules) | {
            "r": len(shared["base_model.vera_A"]),
            "save_projection": True,
            "vera_dropout": float(hyperparameters(adapter.method).get("dropout", 0.0)),
            "bias": "none",
        }
        return Exported(config, tensors, shared)

    def read(self, host: Host, folder: PeftFolder) -> Imported:
        """Convert to `VeRA`, its vectors and matrices."""
        config, sites = folder.config, {s.module: s for s in host.sites.values() if s.kind == "linear" and not s.slice}
        suffixes = {key: suffix for key in folder.tensors for suffix in _VECTORS if key.endswith(suffix)}
        paths = sorted({key.removesuffix(suffix) for key, suffix in suffixes.items()})
        architecture = host.sites.facts.architecture
        problems = [
            f"it adapts {path}, which is not a linear site of this {architecture}"
            for path in paths
            if path not in sites
        ]
        if config.get("bias", "none") != "none":
            problems.append(f"bias={config['bias']!r} also changed the base's biases")
        if not paths:
            problems.append("it has no vectors vera_lambda_d, vera_lambda_b")
        raise_all(problems[:8], f"the PEFT adapter {folder.path} does not fit this model:" if problems else "")
        method: Method = registry()["VeRA"](
            r=int(config.get("r", 256)),
            dropout=float(config.get("vera_dropout", 0.0)),
            sites=tuple(sites[path].name for path in paths),
        )
        tensors = {
            f"vera.{sites[key.removesuffix(suffix)].name}.{_VECTORS[suffix]}": folder.tensors[key]
            for key, suffix in suffixes.items()
        }
        widest = [
            max(width) for width in zip(*((s.width_in, s.width_out) for s in method.pick(host.sites)), strict=True)
        ]
        for name, matrix in zip("AB", _projection(folder, method.size or 0, *widest), strict=True):
            tensors[f"shared.vera.{name}"] = matrix
        return Imported(method, tensors, {*suffixes, *(_SHARED.keys() & folder.tensors.keys())})


def _projection(folder: PeftFolder, r: int, width_in: int, width_out: int) -> tuple[Tensor, Tensor]:
    """Return A (r, in) and B (out, r) as stored, or generated from PEFT's key: A first, then B, He-uniform."""
    stored = [folder.tensors.get(key) for key in _SHARED]
    if stored[0] is not None and stored[1] is not None:
        return stored[0], stored[1]
    if folder.config.get("save_projection", True):
        raise DeltatuneError(f"the PEFT adapter {folder.path} has no {' and '.join(_SHARED)}: it is incomplete")
    rng = torch.Generator().manual_seed(int(folder.config.get("projection_prng_key", 0)))
    A = nn.init.kaiming_uniform_(torch.empty(r, width_in), generator=rng)
    return A, nn.init.kaiming_uniform_(torch.empty(width_out, r), generator=rng)
