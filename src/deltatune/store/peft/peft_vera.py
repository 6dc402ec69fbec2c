"""VeRA as PEFT's type VERA: two vectors a module, and the random A and B that all modules share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deltatune.core.adapter import Adapter
from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.host import Host
from deltatune.core.method import Method
from deltatune.core.registry import registry
from deltatune.store.peft.peft_files import ROOT, Foreign, Ours, Theirs, by_module, modules_config

root = ROOT
_VECTORS = {".vera_lambda_d": "d", ".vera_lambda_b": "b"}
_SHARED = {"base_model.vera_A": "A", "base_model.vera_B": "B"}


def obstacles(method: Method, host: Host, heads: Sequence[str]) -> list[str]:
    """Each part of a fused projection has the first rows of B here, and PEFT knows whole modules only."""
    return [
        f"{site.name} is a part of {site.module}, which PEFT's VeRA changes as a whole; sites='*.attn.qkv' would do"
        for site in method.pick(host.sites)
        if site.slice is not None
    ]


def write(host: Host, adapter: Adapter) -> Theirs:
    """Config and tensors of type VERA."""
    modules = by_module(adapter)
    tensors = {
        path + suffix: parts[0][1].get_parameter(name).detach()
        for path, parts in modules.items()
        for suffix, name in _VECTORS.items()
    }
    projection = next(iter(adapter.shared.values()))
    shared = {key: projection.get_buffer(name) for key, name in _SHARED.items()}
    config = modules_config(host, "VERA", adapter, modules) | {
        "r": len(shared["base_model.vera_A"]),
        "save_projection": True,
        "vera_dropout": float(getattr(adapter.method, "dropout", 0.0)),
        "bias": "none",
    }
    return Theirs(config, tensors, shared)


def read(host: Host, foreign: Foreign) -> Ours:
    """A `VeRA`, its vectors and matrices."""
    config, sites = foreign.config, {s.module: s for s in host.sites.values() if s.kind == "linear" and not s.slice}
    suffixes = {key: suffix for key in foreign.tensors for suffix in _VECTORS if key.endswith(suffix)}
    paths = sorted({key.removesuffix(suffix) for key, suffix in suffixes.items()})
    architecture = host.sites.facts.architecture
    problems = [
        f"it adapts {path}, which is no linear site of this {architecture}" for path in paths if path not in sites
    ]
    if config.get("bias", "none") != "none":
        problems.append(f"bias={config['bias']!r} also changed the base's biases")
    if not paths:
        problems.append("it holds no vectors vera_lambda_d, vera_lambda_b")
    raise_all(problems[:8], f"the PEFT adapter {foreign.place} does not fit this model:" if problems else "")
    method: Method = registry()["VeRA"](
        r=int(config.get("r", 256)),
        dropout=float(config.get("vera_dropout", 0.0)),
        sites=tuple(sites[path].name for path in paths),
    )
    tensors = {
        f"vera.{sites[key.removesuffix(suffix)].name}.{_VECTORS[suffix]}": foreign.tensors[key]
        for key, suffix in suffixes.items()
    }
    widest = [max(width) for width in zip(*((s.width_in, s.width_out) for s in method.pick(host.sites)), strict=True)]
    for name, matrix in zip("AB", _projection(foreign, method.size or 0, *widest), strict=True):
        tensors[f"shared.vera.{name}"] = matrix
    return Ours(method, tensors, {*suffixes, *(_SHARED.keys() & foreign.tensors.keys())})


def _projection(foreign: Foreign, r: int, width_in: int, width_out: int) -> tuple[Tensor, Tensor]:
    """A (r, in) and B (out, r) as stored, or drawn again by PEFT's key: A first, then B, He-uniform."""
    stored = [foreign.tensors.get(key) for key in _SHARED]
    if stored[0] is not None and stored[1] is not None:
        return stored[0], stored[1]
    if foreign.config.get("save_projection", True):
        raise DeltatuneError(f"the PEFT adapter {foreign.place} has no {' and '.join(_SHARED)}: it is not whole")
    rng = torch.Generator().manual_seed(int(foreign.config.get("projection_prng_key", 0)))
    A = nn.init.kaiming_uniform_(torch.empty(r, width_in), generator=rng)
    return A, nn.init.kaiming_uniform_(torch.empty(width_out, r), generator=rng)
