"""Reading PEFT's type LORA: LoRA, rsLoRA, DoRA and converted PiSSA, with a rank and an alpha for each module."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import Any

from torch import Tensor

from deltatune.core.errors import raise_all
from deltatune.core.host import Host
from deltatune.core.method import Method
from deltatune.core.sites import Site
from deltatune.core.text import registry
from deltatune.store.peft.files import Foreign, Ours

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
