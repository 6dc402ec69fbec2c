"""Saving a model with an adapter merged into its weights, verified on the model read back from disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.host import Host
from deltatune.core.merging import difference, rounding_tolerance, verification_output
from deltatune.store.atomic_files import read_json, write_folder, write_json
from deltatune.store.tensors import not_finite

CONFIG, RECORD = "config.json", "merge.json"


@dataclass(frozen=True)
class Merged:
    """The result of saving a merged model."""

    folder: Path
    """The model's folder, for `from_pretrained`."""
    difference: float
    """Largest difference of the outputs on test inputs between the unmerged adapter and the model read back."""


def save_merged(
    host: Host,
    name: str,
    folder: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    dtype: torch.dtype | None = None,
    weight: float = 1.0,
) -> Merged:
    """Write the base with adapter `name` merged into it as a model folder, atomically.

    The model is read back and compared with the unmerged adapter; merge.json records the difference. `dtype` stores
    the weights in another type; `weight` multiplies the adapter's changes. The host is unchanged afterwards. A task
    head is not part of the model and stays with the adapter. Raises DeltatuneError for an adapter without a weight
    form, a folder with other content, weights that are not finite, and a difference beyond rounding errors; then no
    folder is written.
    """
    model = host.model
    if not isinstance(model, PreTrainedModel):
        raise DeltatuneError(f"{type(model).__name__} is not a model of transformers and has no folder format")
    stored_dtype = dtype or next(p.dtype for p in model.parameters() if p.is_floating_point())
    unmerged = outputs(host, name, weight)
    before = host.route
    host.merge_(name, weight)
    try:
        state = weights_of(model, stored_dtype)
        check_finite(model, state, stored_dtype)
        largest = 0.0

        def fill(work: Path) -> None:
            nonlocal largest
            model.save_pretrained(work, state_dict=state)
            config = read_json(work / CONFIG)
            write_json(work / CONFIG, with_dtype(config, str(stored_dtype).removeprefix("torch.")))
            if tokenizer is not None:
                tokenizer.save_pretrained(work)
            largest = verify(host, work, unmerged, stored_dtype)
            method = repr(host.adapters[name].method)
            record = {"adapter": name, "method": method, "weight": weight, "dtype": str(stored_dtype)}
            write_json(work / RECORD, {**record, "difference": largest})

        stored = {id(tensor): tensor.numel() * tensor.element_size() for tensor in state.values()}  # tied ones once
        write_folder(Path(folder), fill, sum(stored.values()))
    finally:
        host.unmerge_(name)
        host.use(before)
    return Merged(Path(folder), largest)


def weights_of(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return the model's own tensors by name, floating ones as `dtype`; tied tensors stay tied."""
    cast: dict[int, torch.Tensor] = {}
    state = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not name.startswith("deltatune."):
            converted = tensor.detach().to(dtype) if tensor.is_floating_point() else tensor
            state[name] = cast.setdefault(id(tensor), converted)
    return state


def check_finite(model: PreTrainedModel, state: Mapping[str, torch.Tensor], dtype: torch.dtype) -> None:
    """Raise DeltatuneError for weights that are not finite: attention kernels may hide NaN from the verification."""
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    problems = not_finite({name: tensor for name, tensor in state.items() if name in names})
    kind = str(dtype).removeprefix("torch.")
    raise_all(
        problems,
        f"the merged weights are not finite in {kind}; nothing was written. The model or the adapter is damaged, its "
        f"weight is too large, or values are beyond the range of {kind}:"
        if problems
        else "",
    )


def with_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Return a config, with the configs of its parts, that names the dtype of the stored weights."""
    parts = {name: with_dtype(value, dtype) if isinstance(value, dict) else value for name, value in config.items()}
    return {name: dtype if name in ("dtype", "torch_dtype") else value for name, value in parts.items()}


def outputs(host: Host, name: str, weight: float = 1.0) -> Any:
    """Return the model's outputs on the test inputs with one adapter unmerged."""
    with host.using({name: weight}, training=False):
        return verification_output(host.model, host.sites.facts)


def verify(host: Host, folder: Path, unmerged: Any, dtype: torch.dtype) -> float:
    """Return the difference of the outputs of the model in a folder. Raises DeltatuneError if it is too large."""
    device = next(host.model.parameters()).device
    reloaded: Any = type(host.model).from_pretrained(folder, dtype=dtype)  # type: ignore[attr-defined]
    largest = difference(unmerged, verification_output(reloaded.to(device).float(), host.sites.facts))
    limit = rounding_tolerance(unmerged, dtype)
    if not largest <= limit:
        raise DeltatuneError(
            f"the merged model, read back, differs by {largest:.2g} from the unmerged adapter, more than {dtype} "
            f"rounding explains ({limit:.2g}); nothing was written"
        )
    return largest
