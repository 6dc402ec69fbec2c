"""A model with an adapter written into its weights, saved as a model of its own and checked as it lies on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError
from deltatune.core.host import Host
from deltatune.core.merging import bound, difference, verification_output
from deltatune.store.atomic_files import read_json, write_folder, write_json

CONFIG, RECORD = "config.json", "merge.json"


@dataclass(frozen=True)
class Merged:
    """What merging did."""

    folder: Path
    """The model's folder: `from_pretrained` takes it."""
    difference: float
    """Largest difference of the outputs on probe inputs between the live adapter and the model read back from disk."""


def save_merged(
    host: Host,
    name: str,
    folder: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    dtype: torch.dtype | None = None,
) -> Merged:
    """Write the base with adapter `name` merged into it as a model folder, whole or not at all.

    The model is read back and compared with the live adapter; the difference stands in merge.json. `dtype` stores the
    weights in another type. The host is afterwards as it was. A task head is no part of the model and stays with the
    adapter. Raises DeltatuneError for an adapter without a weight form, a folder that holds something else, and a
    difference that rounding does not explain: then nothing is left in the folder.
    """
    model = host.model
    if not isinstance(model, PreTrainedModel):
        raise DeltatuneError(f"{type(model).__name__} is no model of transformers, so it has no folder form")
    kind = dtype or next(p.dtype for p in model.parameters() if p.is_floating_point())
    live = outputs(host, name)
    before = host.route
    host.merge_(name)
    try:
        state = weights(model, kind)
        worst = 0.0

        def fill(work: Path) -> None:
            nonlocal worst
            model.save_pretrained(work, state_dict=state)
            config = read_json(work / CONFIG)
            write_json(work / CONFIG, typed(config, str(kind).removeprefix("torch.")))
            if tokenizer is not None:
                tokenizer.save_pretrained(work)
            worst = checked(host, work, live, kind)
            method = repr(host.adapters[name].method)
            write_json(work / RECORD, {"adapter": name, "method": method, "dtype": str(kind), "difference": worst})

        write_folder(Path(folder), fill)
    finally:
        host.unmerge_(name)
        host.use(before)
    return Merged(Path(folder), worst)


def weights(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The model's own tensors by name, floating ones as `dtype`; those that share memory go on sharing it."""
    cast: dict[int, torch.Tensor] = {}
    found = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not name.startswith("deltatune."):
            own = cast.setdefault(id(tensor), tensor.detach().to(dtype) if tensor.is_floating_point() else tensor)
            found[name] = own
    return found


def typed(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """A config, and those of the model's parts in it, that name the type the weights are stored in."""
    found = {name: typed(value, dtype) if isinstance(value, dict) else value for name, value in config.items()}
    return {name: dtype if name in ("dtype", "torch_dtype") else value for name, value in found.items()}


def outputs(host: Host, name: str) -> Any:
    """What the model gives on the probe inputs with one adapter live."""
    with host.using(name, training=False):
        return verification_output(host.model, host.sites.facts)


def checked(host: Host, folder: Path, live: Any, dtype: torch.dtype) -> float:
    """The difference between the live outputs and those of the model in a folder, which is raised if too large."""
    device = next(host.model.parameters()).device
    again: Any = type(host.model).from_pretrained(folder, dtype=dtype)  # type: ignore[attr-defined]
    worst = difference(live, verification_output(again.to(device).float(), host.sites.facts))
    most = bound(live, dtype)
    if not worst <= most:
        raise DeltatuneError(
            f"the merged model, read back, differs by {worst:.2g} from the live adapter, more than {dtype} rounding "
            f"explains ({most:.2g}); nothing was kept"
        )
    return worst
