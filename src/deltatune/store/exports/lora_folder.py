"""A folder with one LoRA in HF PEFT's files, in the plainest form that there is, checked after it is written.

One rank and one scale for all modules, no magnitudes, no trained copies, no patterns: what every server reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from deltatune.core.errors import DeltatuneError
from deltatune.core.host import Host
from deltatune.core.merging import computing_dtype, difference, rounding_tolerance
from deltatune.core.sites.site import Site
from deltatune.store.atomic_files import write_json
from deltatune.store.exports.lora_factors import EXACT, LoRAFactors
from deltatune.store.merged_model import outputs, relative_error
from deltatune.store.peft import peft_folder
from deltatune.store.peft.peft_format import CONFIG, MODULE_PREFIX, TENSORS, modules_config
from deltatune.store.tensors import write_tensors

CHECKED = "exported_lora"
"""Name of the adapter while it is read back."""


def write_lora_folder(host: Host, name: str, factors: LoRAFactors, folder: Path, dtype: torch.dtype) -> None:
    """Write adapter_config.json and adapter_model.safetensors."""
    tensors = {}
    for path, (a, b) in factors.pairs.items():
        suffix = ".lora_embedding_{}" if factors.sites[path].kind == "embed" else ".lora_{}.weight"
        for letter, tensor in (("A", a), ("B", b)):
            tensors[MODULE_PREFIX + path + suffix.format(letter)] = tensor.to(dtype).contiguous().cpu()
    alpha = factors.scale * factors.rank
    config: dict[str, Any] = modules_config(
        host, "LORA", host.adapters[name], {path: [(site, None)] for path, site in factors.sites.items()}
    )
    config |= {
        "target_modules": _target_modules(host, factors.sites),
        "modules_to_save": None,
        "r": factors.rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_dora": False,
        "use_rslora": False,
        "init_lora_weights": True,
    }
    write_json(folder / CONFIG, config)
    write_tensors(folder / TENSORS, tensors)


def check_lora_folder(
    host: Host, name: str, weight: float, folder: Path, factors: LoRAFactors, dtype: torch.dtype
) -> tuple[float, float | None]:
    """Read a folder back as a PEFT adapter and compare its outputs with the adapter's on verification inputs.

    Returns the largest difference, and ‖read back − adapter‖ / ‖adapter − base‖. Where the conversion is exact, raises
    DeltatuneError for a difference that rounding does not explain; what one with a bound loses is measured alone.
    """
    expected, base = outputs(host, {name: weight}), outputs(host, None)
    peft_folder.load(host, folder, CHECKED, True, None)
    try:
        output = outputs(host, CHECKED_ROUTE)
    finally:
        host.detach(CHECKED)
    largest, error = difference(expected, output), relative_error(output, expected, base)
    coarsest = max(dtype, computing_dtype(host.model), key=lambda kind: torch.finfo(kind).eps)
    limit = rounding_tolerance(expected, coarsest)
    if factors.error <= EXACT and not largest <= limit:
        raise DeltatuneError(
            f"the LoRA of {name!r}, read back, differs by {largest:.2g} from the adapter, more than {dtype} rounding "
            f"explains ({limit:.2g}); nothing was written"
        )
    return largest, error


CHECKED_ROUTE: Mapping[str, float] = {CHECKED: 1.0}


def _target_modules(host: Host, sites: Mapping[str, Site]) -> list[str]:
    """The last names of the modules where they select exactly these, else their paths."""
    leaves = {path.rpartition(".")[2] for path in sites}
    selected = {path for path, _ in host.model.named_modules() if path.rpartition(".")[2] in leaves}
    return sorted(leaves) if selected == set(sites) else sorted(sites)
