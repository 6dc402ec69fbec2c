"""Checks of PEFT's adapter_config.json: types of the keys that are read here, and what its tensors contradict."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from deltatune.core.errors import raise_all
from deltatune.core.input_validation.field_validation import shortened
from deltatune.core.sites.site import Sites
from deltatune.store.config_checks import wrong_types
from deltatune.store.peft.peft_format import PeftFolder

_NONE = type(None)
_FLAG: tuple[type, ...] = (bool, _NONE)
KEYS: dict[str, tuple[type, ...]] = {
    "peft_type": (str,),
    "base_model_name_or_path": (str, _NONE),
    "r": (int,),
    "lora_alpha": (float,),
    "alpha": (float,),
    "decompose_factor": (int,),
    "n_frequency": (int,),
    "n_frequency_pattern": (dict, _NONE),
    "scaling": (float,),
    "random_loc_seed": (int,),
    "num_vectors": (int,),
    "vector_length": (int,),
    "topk": (int,),
    "vblora_dropout": (float,),
    "oft_block_size": (int,),
    "use_cayley_neumann": _FLAG,
    "num_cayley_neumann_terms": (int,),
    "coft": _FLAG,
    "eps": (float,),
    "block_share": _FLAG,
    "boft_block_size": (int,),
    "boft_n_butterfly_factor": (int,),
    "decompose_both": _FLAG,
    "lora_dropout": (float,),
    "vera_dropout": (float,),
    "use_rslora": _FLAG,
    "use_dora": _FLAG,
    "save_projection": _FLAG,
    "projection_prng_key": (int,),
    "bias": (str,),
    "init_lora_weights": (bool, str, _NONE),
    "rank_pattern": (dict, _NONE),
    "alpha_pattern": (dict, _NONE),
    "target_modules": (list, str, _NONE),
    "modules_to_save": (list, _NONE),
    "num_virtual_tokens": (int, _NONE),
}
"""Keys that are read here, and their types."""
MAX_PATTERN = 500
"""Characters of a pattern for module names."""
_REPEATS = re.compile(r"(?<!\\)[*+}]")


def check_config(folder: PeftFolder) -> None:
    """Raise DeltatuneError listing keys of a wrong type or value, and tensors without values."""
    config = folder.config
    problems = wrong_types(config, KEYS)
    least_r = 0 if config.get("peft_type") == "OFT" else 1  # where OFT's r is 0 it has the width of blocks instead
    for name, least in (("r", least_r), ("num_virtual_tokens", 1), ("projection_prng_key", 0)):
        if type(config.get(name)) is int and not least <= config[name] < 2**31:
            problems.append(f"{name} is {shortened(config[name])}, it must be from {least} to {2**31 - 1:,}")
    for name in ("lora_dropout", "vera_dropout", "vblora_dropout"):
        if type(config.get(name)) in (int, float) and not 0 <= config[name] < 1:
            problems.append(f"{name} is {config[name]}, it must be at least 0 and less than 1")
    for name, kind in (("rank_pattern", int), ("alpha_pattern", float), ("n_frequency_pattern", int)):
        patterns = config.get(name)
        if isinstance(patterns, dict):
            problems += wrong_types(patterns, dict.fromkeys(patterns, (kind,)), f"{name}.")
            problems += [problem for pattern in patterns if (problem := _pattern_problem(name, pattern))]
    if isinstance(config.get("target_modules"), str):
        problems += filter(None, [_pattern_problem("target_modules", config["target_modules"])])
    for name in ("target_modules", "modules_to_save"):
        names = config.get(name)
        if isinstance(names, list) and not all(isinstance(item, str) for item in names):
            problems.append(f"{name} must list names of modules, not {shortened(names)}")
    problems += [f"tensor {key} has no values" for key, t in folder.tensors.items() if t.dim() == 0 or t.numel() == 0]
    raise_all(problems, f"cannot read the PEFT adapter {folder.path}:" if problems else "")


def lora_contradictions(folder: PeftFolder, ranks: Mapping[str, int], sites: Sites) -> list[str]:
    """List where LoRA tensors of rank `ranks[path]` are not those that the config describes, as PEFT reads it."""
    config, problems = folder.config, []
    for path, rank in ranks.items():
        told = matching(config.get("rank_pattern"), path, config.get("r", rank))
        if told != rank:
            problems.append(f"r is {told} for {path} in the config, its tensors have rank {rank}")
    targets = config.get("target_modules")
    plain = not any(config.get(key) for key in ("layers_to_transform", "layers_pattern", "exclude_modules"))
    if isinstance(targets, list) and targets and plain:
        named = [s.module for s in sites.values() if s.kind in ("linear", "embed") and s.slice is None]
        missing = [path for path in dict.fromkeys(named) if _targets(targets, path) and path not in ranks]
        problems += [f"{path} is among its target_modules, but it has no tensors" for path in missing]
        extra = [path for path in ranks if not _targets(targets, path)]
        problems += [f"{path} has tensors, but it is not among its target_modules" for path in extra]
    return problems


def matching(patterns: Mapping[str, Any] | None, path: str, default: Any) -> Any:
    """The value of the first pattern that matches a module's path, as in PEFT."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", path):
            return value
    return default


def _targets(targets: list[str], path: str) -> bool:
    return any(path == target or path.endswith(f".{target}") for target in targets)


def _pattern_problem(name: str, pattern: str) -> str | None:
    """Why a pattern is not used: it is none, or matching it might take without end."""
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        return f"{name} has {shortened(pattern)}, which is not a pattern ({error})"
    groups_repeated = re.search(r"\)[*+{]", pattern) is not None
    if len(pattern) > MAX_PATTERN or len(_REPEATS.findall(pattern)) > 4 or groups_repeated:
        return f"{name} has {shortened(pattern)}, whose repeats may take without end to match; write a simpler one"
    return None
