"""A LoRA adapter as HF PEFT's two files, `adapter_config.json` and `adapter_model.safetensors`.

PEFT has one low-rank pair a module. Parts of a fused projection become one pair of higher rank: `A = [A_q; A_v]`, and
`B` holds each part's columns in that part's rows.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from deltatune.core.adapter import Adapter
from deltatune.core.delta import Delta
from deltatune.core.host import Host
from deltatune.core.sites import Site
from deltatune.core.slices import put
from deltatune.store.atomic import write_json

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
ROOT = "base_model.model."


def expressible(adapter: Adapter) -> bool:
    """Whether HF PEFT can hold the adapter: one LoRA, and perhaps the model's own head."""
    return type(adapter.method).__name__ == "LoRA"


def write_peft(host: Host, adapter: Adapter, folder: Path) -> None:
    """Write PEFT's files into a folder, if PEFT can hold the adapter."""
    if not expressible(adapter):
        return
    modules: dict[str, list[tuple[Site, Any]]] = {}
    heads: list[tuple[Site, Delta]] = []
    for _, site, delta in adapter.entries():
        if site.kind == "head":
            heads.append((site, delta))
        else:
            modules.setdefault(site.module, []).append((site, delta))
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for path, pairs in modules.items():
        a, b = _pair(host, path, pairs)
        tensors[f"{ROOT}{path}.lora_A.weight"], tensors[f"{ROOT}{path}.lora_B.weight"] = a, b
        ranks[path] = a.shape[0]
    for site, delta in heads:
        for name, tensor in delta.get_submodule("module").state_dict().items():
            tensors[f"{ROOT}{site.module}.{name}"] = tensor
    config = _config(host, adapter, modules, ranks, [site.module for site, _ in heads])
    write_json(folder / CONFIG, config)
    save_file(
        {k: t.detach().contiguous().cpu() for k, t in tensors.items()}, folder / TENSORS, metadata={"format": "pt"}
    )


def _pair(host: Host, path: str, pairs: list[tuple[Site, Any]]) -> tuple[Tensor, Tensor]:
    """One (A, B) for a module: A (sum of ranks, in), B (out, sum of ranks)."""
    if pairs[0][0].slice is None and len(pairs) == 1:
        return pairs[0][1].A.detach(), pairs[0][1].B.detach()
    whole = host.sites[pairs[0][0].name.rpartition(".")[0] + "." + _whole(pairs[0][0])].width_out
    columns = []
    for site, delta in pairs:
        b = delta.B.detach()
        columns.append(put(b.new_zeros(b.shape[1], whole), site.slice, b.T).T)
    return torch.cat([delta.A.detach() for _, delta in pairs]), torch.cat(columns, 1)


def _whole(site: Site) -> str:
    return "gate_up" if ".ffn." in site.name else "qkv"


def _config(
    host: Host, adapter: Adapter, modules: dict[str, list[tuple[Site, Any]]], ranks: dict[str, int], heads: list[str]
) -> dict[str, Any]:
    method: Any = adapter.method
    scale = method.alpha / method.r
    common = max(ranks.values())
    odd = {path: rank for path, rank in ranks.items() if rank != common}
    return {
        "peft_type": "LORA",
        "task_type": _task_type(host, heads),
        "base_model_name_or_path": str(getattr(host.model.config, "_name_or_path", "") or ""),
        "inference_mode": True,
        "r": common,
        "lora_alpha": scale * common,
        "lora_dropout": method.dropout,
        "rank_pattern": {re.escape(path): rank for path, rank in odd.items()},
        "alpha_pattern": {re.escape(path): scale * rank for path, rank in odd.items()},
        "target_modules": sorted(modules),
        "fan_in_fan_out": any(site.transposed for pairs in modules.values() for site, _ in pairs),
        "bias": "none",
        "modules_to_save": heads or None,
    }


def _task_type(host: Host, heads: list[str]) -> str | None:
    facts, architecture = host.sites.facts, host.sites.facts.architecture
    if heads:
        return "SEQ_CLS" if "SequenceClassification" in architecture else None
    if facts.encoder_decoder and "ConditionalGeneration" in architecture:
        return "SEQ_2_SEQ_LM"
    if facts.decoder and ("CausalLM" in architecture or "LMHead" in architecture):
        return "CAUSAL_LM"
    return None if hasattr(host.model, "lm_head") else "FEATURE_EXTRACTION"
