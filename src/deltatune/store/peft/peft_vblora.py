"""VB-LoRA as PEFT's type VBLORA: logits of each module, or their largest as weights, and the bank of all modules."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deltatune.core.adapter import Adapter
from deltatune.core.errors import raise_all
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
from deltatune.store.peft.peft_modules import read_modules, slice_obstacles

_BANK = "base_model.vblora_vector_bank"
_LOGITS = ("logits_A", "logits_B")
_FULL = {f".vblora_{name}": name for name in _LOGITS}
_TOP = {f".vblora_{name}_topk_{part}": f"{name}.{part}" for name in _LOGITS for part in ("indices", "weights")}
_NEVER = -1e4
"""A logit that is never among the largest."""


class VBLoRAFormat:
    """PEFT type VBLORA."""

    prefix = MODULE_PREFIX

    def obstacles(self, method: Method, host: Host, heads: Sequence[str]) -> list[str]:
        """PEFT only changes whole modules."""
        return slice_obstacles(method, host, "VBLoRA")

    def write(self, host: Host, adapter: Adapter) -> Exported:
        """Convert to config and tensors of type VBLORA, with all logits."""
        modules, fields = deltas_by_module(adapter), hyperparameters(adapter.method)
        tensors = {
            path + suffix: deltas[0][1].get_parameter(name).detach()
            for path, deltas in modules.items()
            for suffix, name in _FULL.items()
        }
        bank = next(iter(adapter.shared.values())).get_parameter("vectors").detach()
        config = modules_config(host, "VBLORA", adapter, modules) | {
            "r": fields["r"],
            "num_vectors": len(bank),
            "vector_length": bank.shape[1],
            "topk": min(fields["k"], len(bank)),
            "vblora_dropout": float(fields["dropout"]),
            "save_only_topk_weights": False,
            "bias": "none",
        }
        return Exported(config, tensors, {_BANK: bank})

    def read(self, host: Host, folder: PeftFolder) -> Imported:
        """Convert to `VBLoRA`, its logits and bank; of weights alone, each logit is the logarithm of one."""
        config = folder.config
        bank = folder.tensors.get(_BANK)
        if bank is None or bank.dim() != 2:
            raise_all([f"it has no bank of vectors {_BANK}"], f"cannot read the PEFT adapter {folder.path}:")
        assert bank is not None
        modules, sites, used = read_modules(host, folder, {**_FULL, **_TOP}, [set(_FULL.values()), set(_TOP.values())])
        tensors: dict[str, Tensor] = {"shared.vblora.vectors": bank}
        for path, parts in modules.items():
            for name in _LOGITS:
                logits = parts.get(name)
                if logits is None:
                    logits = _from_weights(parts[f"{name}.indices"], parts[f"{name}.weights"], len(bank))
                tensors[f"vblora.{sites[path].name}.{name}"] = logits
        method: Method = registry()["VBLoRA"](
            r=int(config.get("r", 4)),
            vectors=len(bank),
            length=bank.shape[1],
            k=int(config.get("topk", 2)),
            dropout=float(config.get("vblora_dropout", 0.0)),
            sites=tuple(sites[path].name for path in sorted(modules)),
        )
        return Imported(method, tensors, {*used, _BANK})


def _from_weights(indices: Tensor, weights: Tensor, vectors: int) -> Tensor:
    """Logits (..., h) of the chosen vectors and their weights but the last, which makes their sum 1."""
    whole = torch.cat([weights, 1 - weights.sum(-1, keepdim=True)], dim=-1).float()
    logits = torch.full((*whole.shape[:-1], vectors), _NEVER)
    return logits.scatter(-1, indices.long(), whole.clamp_min(1e-30).log())
